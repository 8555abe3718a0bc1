"""Where the figures come from: what the ranks and NVML wrote down of versions, hosts, devices and settings, gathered.

    headers of all ranks --+--> run, versions, environment, hosts      said once, with a sentence where ranks differ
    NVML's inventories   --+--> devices

Nothing here is looked up: it is a function of the records, so a recheck elsewhere tells the same of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.exact import decimal_text
from hybrid_runtime.nvml_records import NvmlDevice, NvmlRecords, PeerAccess, Unavailable
from hybrid_runtime.records import Header
from hybrid_runtime.verdict import Provenance
from hybrid_runtime.verifier.driver import Driver
from hybrid_runtime.verifier.side import Side
from hybrid_runtime.verifier.tool import tool_facts

NOT_RECORDED = "n/a: the records do not hold it"
NOT_SET = "not set"
# Facts that change from minute to minute, or that every rank has its own of: no difference worth a sentence.
_CHANGING = ("load average", "memory available", "CPUs allowed to this rank", "physical cores behind them")


class _Said(NamedTuple):
    """Facts as one rank or host gave them."""

    where: str
    facts: Mapping[str, str]


def provenance(drivers: Sequence[Driver], tool: Callable[[], dict[str, str]] = tool_facts) -> Provenance:
    """Of the measured sides (candidate first), each with what NVML recorded beside it.

    Args:
        tool: says what judges; the only part that is not read from the records.
    """
    sides = [driver.metrics.side for driver in drivers]
    ranks = [(f"{side.role} rank {rank.header.rank}", rank.header) for side in sides for rank in side.ranks]
    versions, odd_versions = _once([_Said(where, header.versions) for where, header in ranks])
    environment, odd_environment = _once([_Said(where, header.environment) for where, header in ranks])
    settings = [_Said(where, {"backend": header.backend, "clock": header.clock}) for where, header in ranks]
    hosts = _hosts(sides)
    machines = [_Said(f"host {name}", _lasting(facts)) for name, facts in hosts.items()]
    _, odd_settings = _once(settings)
    _, odd_hosts = _once(machines)
    return Provenance(
        tool=tool(),
        run={name: text for side in sides for name, text in _run(side).items()},
        versions=versions or {"versions": NOT_RECORDED},
        environment=environment,
        hosts=hosts,
        devices=_devices(sides, [file for driver in drivers for file in driver.records]),
        differing=(*odd_versions, *odd_environment, *odd_settings, *odd_hosts),
    )


def launch_warnings(side: Side) -> list[str]:
    """That this deployment was launched before: the best of several runs is no measurement."""
    earlier = side.ranks[0].header.earlier_launches
    if not earlier:
        return []
    return [
        f"launch {len(earlier) + 1} of exactly this deployment beside this folder: {', '.join(earlier)} came before; "
        "judge them too, the best of several runs is no measurement"
    ]


def _run(side: Side) -> dict[str, str]:
    first = side.ranks[0].header
    finished = [rank.footer.finished_utc for rank in side.ranks if rank.footer is not None]
    doubt_ns = max(rank.header.clock_uncertainty_ns for rank in side.ranks)
    facts = {
        "started": min(rank.header.started_utc for rank in side.ranks),
        "finished": max(finished, default=NOT_RECORDED),
        "backend": first.backend,
        "clocks of the hosts agree to": f"{decimal_text(Fraction(doubt_ns, 1000), 1)} µs",
        "command": NOT_RECORDED,
        "working directory": NOT_RECORDED,
        "git commit of the working directory": NOT_RECORDED,
        **first.launch,
    }
    if side.role == "candidate":
        facts["earlier launches of exactly this deployment"] = ", ".join(first.earlier_launches) or (
            "none" if first.launch else NOT_RECORDED
        )
    else:
        facts.pop("earlier launches of this name with other settings", None)
    return {f"{side.role}: {name}": text for name, text in facts.items()}


def _hosts(sides: Sequence[Side]) -> dict[str, dict[str, str]]:
    """Every host's facts as its first rank wrote them down, and which ranks ran there on which cores."""
    found: dict[str, dict[str, str]] = {}
    for side in sides:
        for rank in side.ranks:
            host, machine = rank.header.host, rank.header.machine
            facts = found.setdefault(host.name, dict(machine) or {"machine": NOT_RECORDED})
            facts.setdefault("cores available to the ranks", str(host.available_cores))
            cores = ",".join(map(str, host.affinity))
            place = f"{side.role} rank {rank.header.rank} on CPUs {cores}, {host.threads_per_rank} thread(s)"
            facts["placement"] = "; ".join(text for text in (facts.get("placement"), place) if text)
    return found


def _lasting(facts: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in facts.items() if name not in (*_CHANGING, "placement", "PID namespace")}


def _devices(sides: Sequence[Side], files: Sequence[NvmlRecords]) -> dict[str, dict[str, str]]:
    headers: dict[str, Header] = {}
    for side in sides:
        for rank in side.ranks:
            headers.setdefault(rank.header.device.id, rank.header)
    return {device: _device(header, files) for device, header in headers.items()}


def _device(header: Header, files: Sequence[NvmlRecords]) -> dict[str, str]:
    device = header.device
    size = device.total_bytes
    facts = {
        "name": device.name or "n/a: the system does not tell",
        "host": header.host.name,
        "owned": "by one rank" if device.owned else "shared by ranks",
        "memory": f"{size} bytes" if size is not None else "n/a: a CPU's memory is its host's",
    }
    if device.kind == "cpu":
        return facts | {"NVML": "n/a: not a GPU"}
    seen = [(file, state, found.peers) for file in files for found in (file.before, file.after) if found is not None
            for state in found.devices if state.uuid == device.id]  # fmt: skip
    if not seen:
        return facts | {"NVML": "n/a: its records do not hold this device"}
    file, state, peers = seen[0]
    return facts | {
        "driver": str(file.header.driver),
        "CUDA of the driver": str(file.header.cuda_driver),
        "nvidia-ml-py": str(file.header.binding),
        **{name: str(text) for name, text in state.facts.items()},
        "NVLink": _links(state),
        **_changes([one.facts for _, one, _ in seen]),
        **_peers(device.id, peers),
    }


def _links(state: NvmlDevice) -> str:
    if isinstance(state.links, Unavailable):
        return str(state.links)
    up = sum(link.active == 1 for link in state.links)
    return f"{up} of {len(state.links)} links up" if state.links else "no links"


def _changes(states: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Settings that somebody changed while the run was on."""
    first, last = states[0], states[-1]
    changed = [f"{name} from {first[name]} to {last[name]}" for name in first if last.get(name) != first[name]]
    return {"changed during the run": "; ".join(changed)} if changed else {}


def _peers(device: str, peers: Iterable[PeerAccess]) -> dict[str, str]:
    return {
        f"to {peer.second if peer.first == device else peer.first}": (
            f"NVLink {peer.nvlink}, read {peer.read}, {peer.topology}"
        )
        for peer in peers
        if device in (peer.first, peer.second)
    }


def _once(said: Sequence[_Said]) -> tuple[dict[str, str], list[str]]:
    """The facts as the first gave them, and a sentence for every fact that was not the same everywhere."""
    names = list(dict.fromkeys(name for one in said for name in one.facts))
    facts, differing = {}, []
    for name in names:
        places: dict[str, list[str]] = {}
        for one in said:
            places.setdefault(one.facts.get(name, NOT_SET), []).append(one.where)
        facts[name] = said[0].facts.get(name, NOT_SET)
        if len(places) > 1:
            differing.append(f"{name}: " + "; ".join(f"{text} on {_shortened(at)}" for text, at in places.items()))
    return facts, differing


def _shortened(places: Sequence[str], most: int = 4) -> str:
    more = len(places) - most
    return ", ".join(places[:most]) + (f" and {more} more" if more > 0 else "")
