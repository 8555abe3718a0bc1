"""A second look at GPU memory: what the allocator keeps, and what NVML sees beside it.

Memory balance is judged from allocated bytes: reserved caches, contexts and NCCL's buffers add the same to every device
and would hide an imbalance. Where those are large or uneven, a device can run out of memory all the same; it is said.
"""

from __future__ import annotations

from fractions import Fraction

from hybrid_runtime.exact import decimal_text
from hybrid_runtime.verifier.driver import Driver

RESERVED_RATIO = Fraction(3, 2)  # reserved / allocated
BESIDE_SPREAD_BYTES = 512 * 2**20  # of memory in use beside the allocator's, between devices
MIB = 2**20


def memory_warnings(driver: Driver) -> list[str]:
    """Devices whose allocator keeps much more than it uses, and memory outside it that differs between devices."""
    metrics = driver.metrics
    if metrics.kind == "cpu":
        return []
    reserved = [_reserved_peak(driver, index) for index in range(len(metrics.devices))]
    peaks = metrics.memory_peaks or [0] * len(metrics.devices)
    warnings = [
        f"{device}: the allocator reserves {_mib(kept)} for {_mib(used)} in use; shares of reserved memory would look "
        "more even than they are"
        for device, kept, used in zip(metrics.devices, reserved, peaks, strict=True)
        if used and kept > RESERVED_RATIO * used
    ]
    beside = {
        device: max(seen) - kept
        for index, (device, kept) in enumerate(zip(metrics.devices, reserved, strict=True))
        if kept and (seen := _used(driver, index))
    }
    if beside and max(beside.values()) - min(beside.values()) > BESIDE_SPREAD_BYTES:
        most, least = (pick(beside, key=lambda device: beside[device]) for pick in (max, min))
        warnings.append(
            f"beside the allocator's memory {most} uses {_mib(beside[most])} and {least} {_mib(beside[least])}: "
            "contexts, NCCL buffers, or another process"
        )
    return warnings


def _reserved_peak(driver: Driver, device: int) -> int:
    """Largest reserved bytes of a device's ranks; 0 where it was not recorded."""
    ranks = [driver.metrics.side.ranks[index] for index in driver.metrics.ranks_of[device]]
    return sum(max((step.memory.reserved_peak or 0 for step in rank.steps), default=0) for rank in ranks)


def _used(driver: Driver, device: int) -> list[int]:
    readings = (sample.memory_used_bytes for sample in driver.samples(device))
    return [reading for reading in readings if isinstance(reading, int)]


def _mib(size_bytes: int) -> str:
    return f"{decimal_text(Fraction(size_bytes, MIB), 0)} MiB"
