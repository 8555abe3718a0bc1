"""What the deployment requires of the machine, judged from the devices that the ranks really ran on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.exact import decimal_text, exact_text, parse_bytes, parse_gb_per_s
from hybrid_runtime.verdict import Claim, Outcome
from hybrid_runtime.verdict_measured import Measured
from hybrid_runtime.verifier.driver import Driver
from hybrid_runtime.verifier.finding import Finding, claim, undecided
from hybrid_runtime.verifier.metrics import Metrics
from hybrid_runtime.verifier.trust import mismatch


def requirements(deployment: Deployment, metrics: Metrics, driver: Driver) -> Iterator[Claim]:
    """The hardware claims: how many devices, how much memory on each, how they are linked."""
    hardware = deployment.hardware
    if hardware.devices is not None:
        text = f"the ranks ran on exactly {hardware.devices} physical devices"
        finding = device_count(deployment, metrics, hardware.devices)
        yield claim("device_count", "device_count", (">=", hardware.devices, "devices"), text, finding)
    if hardware.memory_per_device is not None:
        needed = parse_bytes(hardware.memory_per_device)
        text = f"every device has at least {hardware.memory_per_device} of memory"
        finding = device_memory(deployment, metrics, needed)
        yield claim("device_memory", "device_memory_bytes", (">=", needed, "bytes"), text, finding)
    if hardware.interconnect is not None or hardware.link_pairs:
        text = "NVLink joins every pair of devices that " + ("is listed" if hardware.link_pairs else "the plan uses")
        pairs = link_pairs(deployment, metrics)
        finding = link_present(deployment, metrics, driver, pairs)
        yield claim("link_present", "link_present", (">=", len(pairs), "linked pairs"), text, finding)
    if hardware.min_link_bandwidth is not None:
        rate = parse_gb_per_s(hardware.min_link_bandwidth)
        text = f"every link carries at least {hardware.min_link_bandwidth} in one direction"
        finding = mismatched(deployment, metrics) or undecided("not_measured", "the records hold no bandwidth test")
        yield claim("link_bandwidth", "link_busbw", (">=", rate, "GB/s"), text, finding)


def mismatched(deployment: Deployment, metrics: Metrics) -> Finding | None:
    """INCONCLUSIVE where the run was on another kind of device than the deployment is for."""
    wrong = mismatch(deployment, metrics)
    return undecided(*wrong) if wrong else None


def link_pairs(deployment: Deployment, metrics: Metrics) -> list[tuple[str, str]]:
    """Pairs of device ids: those listed in the file, else neighbours on every axis of the mesh."""
    mesh, devices = metrics.side.plan.mesh, metrics.devices
    if listed := deployment.hardware.link_pairs:
        known = range(len(devices))
        names = [[devices[index] if index in known else f"device {index}" for index in pair] for pair in listed]
        return [(first, second) for first, second in names]
    of_rank = {rank: devices[index] for index, ranks in enumerate(metrics.ranks_of) for rank in ranks}
    groups = [*mesh.tp_groups(), *mesh.pp_columns(), *mesh.dp_groups()]
    used = {tuple(sorted((of_rank[a], of_rank[b]))) for group in groups for a, b in pairwise(group)}
    return [(first, second) for first, second in sorted(used) if first != second]


def link_present(deployment: Deployment, metrics: Metrics, driver: Driver, pairs: Sequence[tuple[str, str]]) -> Finding:
    """Every pair reaches each other over NVLink, as NVML's peer status says."""
    if wrong := mismatched(deployment, metrics):
        return wrong
    if not pairs:
        return Finding(Outcome.NOT_APPLICABLE, "one device has no neighbour to be linked with")
    said = {frozenset((peer.first, peer.second)): peer.nvlink for peer in driver.peers()}
    statuses = {pair: said.get(frozenset(pair)) for pair in pairs}
    unknown = [pair for pair, status in statuses.items() if not isinstance(status, str)]
    if unknown:
        status = statuses[unknown[0]]
        why = str(status) if status is not None else "n/a (NVML recorded nothing about them)"
        return undecided("counters_unsupported", f"{unknown[0][0]} and {unknown[0][1]}: {why}")
    down = [f"{first} and {second}: {status}" for (first, second), status in statuses.items() if status != "ok"]
    measured = _counted(metrics, len(pairs) - len(down), "NVML peer status")
    outcome = Outcome.FAIL if down else Outcome.PASS
    return Finding(outcome, "; ".join(down) or f"all {len(pairs)} pairs", None, measured)


def device_count(deployment: Deployment, metrics: Metrics, declared: int) -> Finding:
    """Unique device ids over all ranks equal the declared number; a shared CPU core is no device."""
    if wrong := mismatched(deployment, metrics):
        return wrong
    if metrics.hardware == "cpu-oversubscribed":
        return undecided("oversubscribed", f"{len(metrics.owned)} ranks share CPU cores: none of them is a device")
    count = len(metrics.devices)
    outcome = Outcome.PASS if count == declared else Outcome.FAIL
    return Finding(outcome, ", ".join(metrics.devices), None, _counted(metrics, count, "unique ids of all ranks"))


def device_memory(deployment: Deployment, metrics: Metrics, needed: int) -> Finding:
    """The smallest device's memory, as its driver reports it, reaches what is declared."""
    if wrong := mismatched(deployment, metrics):
        return wrong
    sizes = {rank.header.device.id: rank.header.device.total_bytes for rank in metrics.side.ranks}
    known = {device: size for device, size in sizes.items() if size is not None}
    if len(known) < len(sizes):
        return undecided("not_measured", "the memory of a device was not recorded")
    smallest = min(known, key=lambda device: known[device])
    outcome = Outcome.PASS if known[smallest] >= needed else Outcome.FAIL
    detail = f"smallest is {smallest} with {decimal_text(Fraction(known[smallest], 10**9), 2)} GB (10^9)"
    return Finding(outcome, detail, None, _counted(metrics, known[smallest], "total memory in the records' headers"))


def _counted(metrics: Metrics, value: int, method: str) -> Measured:
    text = exact_text(Fraction(value))
    return Measured(
        point=text,
        exact=text,
        lower=text,
        upper=text,
        confidence="exact",
        method=method,
        samples=1,
        hardware=metrics.hardware,
        evidence="deterministic",
    )
