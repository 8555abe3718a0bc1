"""What NVML saw while a side was measured: reasons to doubt its clocks, readings for the device table, links.

Only samples that fall inside measured blocks count: between blocks a GPU idles, and its clocks say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import median

from hybrid_runtime.nvml_records import (
    THROTTLING_COUNTERS,
    THROTTLING_MASK,
    NvmlDevice,
    NvmlInventory,
    NvmlRecords,
    NvmlSample,
    PeerAccess,
    clock_event_names,
    read_nvml,
)
from hybrid_runtime.verifier.metrics import Metrics, percent
from hybrid_runtime.verifier.trust import Blocker

MAX_CLOCK_SPREAD = Fraction(2, 100)
THROTTLED_SHARE = Fraction(5, 100)  # bits flash when a GPU changes its power state; more than this is no flash
BUSY_GAP_POINTS = 15  # NVML counts communication kernels that spin as busy; a larger gap deserves a sentence


@dataclass(frozen=True)
class Driver:
    """NVML's records of a run, per device of one side; empty where there was no NVIDIA driver to ask."""

    metrics: Metrics
    records: tuple[NvmlRecords, ...]

    def of(self, metrics: Metrics) -> Driver:
        """The same records seen from other steps of the same side."""
        return replace(self, metrics=metrics)

    def samples(self, device: int) -> list[NvmlSample]:
        """Samples of a device inside its measured blocks."""
        blocks = _raw_blocks(self.metrics, device)
        return [
            sample
            for file in self.records
            for sample in file.samples
            if sample.uuid == self.metrics.devices[device]
            and any(start <= sample.time_ns <= end for start, end in blocks)
        ]

    def inventories(self) -> list[NvmlInventory]:
        return [found for file in self.records for found in (file.before, file.after) if found is not None]

    def states(self, device: str) -> list[NvmlDevice]:
        """A device in the inventories before and after the run."""
        return [state for found in self.inventories() for state in found.devices if state.uuid == device]

    def peers(self) -> list[PeerAccess]:
        return [peer for found in self.inventories() for peer in found.peers]


def read_driver(metrics: Metrics) -> Driver:
    """Reads records/nvml-*.jsonl of a side, if there are any.

    Raises:
        RecordsError: one is damaged.
    """
    files = sorted((metrics.side.folder / "records").glob("nvml-*.jsonl"))
    return Driver(metrics, tuple(map(read_nvml, files)))


def driver_blocker(drivers: Sequence[Driver], *, unseen: bool = False) -> Blocker | None:
    """The first thing that forbids to believe the times of these sides, which share their devices.

    Args:
        unseen: a baseline was started that could not run: its processes may have been counted.
    """
    for driver in drivers:
        if driver.metrics.kind == "cuda" and driver.records:
            found = (
                _foreign_process(driver, drivers, unseen)
                or _throttled(driver)
                or _violated(driver)
                or _clock_spread(driver)
            )
            if found:
                return found
    return None


def _foreign_process(driver: Driver, drivers: Sequence[Driver], unseen: bool) -> Blocker | None:
    sides = {one.metrics.side.role: one.metrics.side for one in drivers}
    for device in driver.metrics.devices:
        ours = unseen + sum(rank.header.device.id == device for side in sides.values() for rank in side.ranks)
        counts = [state.processes for state in driver.states(device) if isinstance(state.processes, int)]
        if counts and max(counts) > ours:
            note = f"{device}: {max(counts)} processes computed on it, {ours} of them ranks"
            return Blocker("foreign_process", note)
    return None


def _throttled(driver: Driver) -> Blocker | None:
    for index, device in enumerate(driver.metrics.devices):
        masks = _readings(driver.samples(index), "clock_events_mask")
        slowed = [mask & THROTTLING_MASK for mask in masks if mask & THROTTLING_MASK]
        if masks and Fraction(len(slowed), len(masks)) > THROTTLED_SHARE:
            why = ", ".join(sorted({name for mask in slowed for name in clock_event_names(mask)}))
            note = f"{device}: slowed down in {percent(len(slowed), len(masks), 0)} % of the samples ({why})"
            return Blocker("throttled", note)
    return None


def _violated(driver: Driver) -> Blocker | None:
    """NVML's counters of time spent slowed down, which miss no burst between two samples."""
    for file in driver.records:
        if file.before is None or file.after is None:
            continue
        lasted_ns = file.after.time_ns - file.before.time_ns
        for device in driver.metrics.devices:
            first, last = ([s for s in found.devices if s.uuid == device] for found in (file.before, file.after))
            slowed_ns = _slowed_ns(first[0], last[0]) if first and last else {}
            for why, time_ns in slowed_ns.items():
                if lasted_ns > 0 and Fraction(time_ns, lasted_ns) > THROTTLED_SHARE:
                    return Blocker(
                        "throttled", f"{device}: slowed down {percent(time_ns, lasted_ns, 0)} % of the time ({why})"
                    )
    return None


def _slowed_ns(before: NvmlDevice, after: NvmlDevice) -> dict[str, int]:
    """How far each violation counter moved during the run; a counter that is not supported says nothing."""
    moved = {}
    for name in THROTTLING_COUNTERS:
        first, last = before.violations.get(name), after.violations.get(name)
        if isinstance(first, int) and isinstance(last, int):
            moved[name.replace("_", " ")] = last - first
    return moved


def _clock_spread(driver: Driver) -> Blocker | None:
    """Over all devices and samples, a twentieth left out at either end."""
    devices = range(len(driver.metrics.devices))
    clocks = sorted(clock for device in devices for clock in _readings(driver.samples(device), "sm_clock_mhz"))
    cut = len(clocks) // 20
    kept = clocks[cut : len(clocks) - cut]
    if not kept or not kept[-1] or Fraction(kept[-1] - kept[0], kept[-1]) <= MAX_CLOCK_SPREAD:
        return None
    note = f"SM clocks ran from {kept[0]} to {kept[-1]} MHz, more than {percent(MAX_CLOCK_SPREAD, 1, 0)} % apart"
    return Blocker("clock_spread", note)


def driver_rows(driver: Driver) -> list[dict[str, str]]:
    """Per device, what NVML read in words: medians over the measured blocks."""
    return [_row(driver, device) for device in range(len(driver.metrics.devices))]


def _row(driver: Driver, device: int) -> dict[str, str]:
    if driver.metrics.kind == "cpu":
        return {"NVML": "n/a: the ranks ran on CPUs"}
    if not driver.records:
        return {"NVML": "n/a: the run left no NVML records"}
    samples = driver.samples(device)
    if not samples:
        return {"NVML": "n/a: no sample fell inside a measured block"}
    return {
        "utilisation": _median_text(samples, "utilisation_percent", 1, "%"),
        "SM clock": _median_text(samples, "sm_clock_mhz", 1, "MHz"),
        "memory used": _median_text(samples, "memory_used_bytes", 2**20, "MiB"),
        "power": _median_text(samples, "power_mw", 1000, "W"),
        "temperature": _median_text(samples, "temperature_c", 1, "°C"),
    }


def _median_text(samples: Sequence[NvmlSample], name: str, per_unit: int, unit: str) -> str:
    readings = _readings(samples, name)
    return f"{median(readings) / per_unit:.0f} {unit}" if readings else str(getattr(samples[0], name))


def driver_warnings(driver: Driver) -> list[str]:
    """Where NVML watched nothing, was stopped early, or calls a device much busier than its compute is."""
    metrics = driver.metrics
    if metrics.kind == "cpu":
        return []
    if not driver.records:
        return [f"{metrics.side.role}: no NVML records, so throttling and other processes were not watched"]
    warnings = [f"{file.path.name}: the sampler did not finish" for file in driver.records if file.footer is None]
    warnings += [
        f"{device}: NVML did not watch this device, so throttling and other processes on it are unknown"
        for device in metrics.devices
        if not any(sample.uuid == device for file in driver.records for sample in file.samples)
    ]
    table = metrics.compute_ns or []
    for index, device in enumerate(metrics.devices):
        readings = _readings(driver.samples(index), "utilisation_percent")
        if not readings or not table:
            continue
        busy = 100 * sum(row[index] for row in table) / sum(metrics.windows_ns)
        if median(readings) - busy > BUSY_GAP_POINTS:
            warnings.append(
                f"{device}: NVML says {median(readings):.0f} % utilised, but it computed {busy:.0f} % of the time; "
                "the rest is communication that spins"
            )
        if busy - median(readings) > BUSY_GAP_POINTS:
            warnings.append(
                f"{device}: its actions took {busy:.0f} % of the time, NVML says {median(readings):.0f} % utilised; "
                "they hold gaps between kernels"
            )
    return warnings


def _readings(samples: Sequence[NvmlSample], name: str) -> list[int]:
    return [value for sample in samples if isinstance(value := getattr(sample, name), int)]


def _raw_blocks(metrics: Metrics, device: int) -> list[tuple[int, int]]:
    """Measured blocks on the clock of the device's own host, which is NVML's too."""
    steps = list(metrics.measured(metrics.side.ranks[metrics.ranks_of[device][0]]))
    return [(steps[block[0]].start_ns, steps[block[-1]].end_ns) for block in metrics.blocks()]
