"""What NVML said about a host's GPUs during a run, and its JSON Lines form: `records/nvml-<host>.jsonl`.

A file is one `NvmlHeader`, an `NvmlInventory` before the run, an `NvmlSample` per device and interval, an inventory
after the run and an `NvmlFooter`. Slow queries (processes, links, violation counters) are made before and after only.
Times are CLOCK_MONOTONIC of the host, as in the ranks' records. A reading that could not be taken is an `Unavailable`
with the reason, never a zero.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from hybrid_runtime.errors import RecordsError

SCHEMA_VERSION = "1.0"

# Bits of nvml.h's nvmlClocksEventReason*.
CLOCK_EVENTS = {
    0x001: "idle",
    0x002: "application clocks setting",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clock setting",
}
THROTTLING_MASK = 0x004 | 0x008 | 0x020 | 0x040 | 0x080  # the device ran slower than it was set to

# Names in `NvmlDevice.violations` that count nanoseconds for the same reasons.
THROTTLING_COUNTERS = ("power", "thermal", "board_limit", "reliability", "software_thermal", "hardware_thermal",
                       "hardware_power_brake")  # fmt: skip


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Unavailable(_Record):
    """A reading that could not be taken, and why."""

    unavailable: str

    def __str__(self) -> str:
        return f"n/a ({self.unavailable})"


Reading = int | Unavailable
Text = str | Unavailable
NOT_RECORDED = Unavailable(unavailable="not recorded")  # by a sampler older than the field


class NvmlHeader(_Record):
    """Who sampled what. `binding` is the version of nvidia-ml-py, `cuda_driver` the newest CUDA the driver can run."""

    type: Literal["header"] = "header"
    schema_version: str = SCHEMA_VERSION
    host: str
    uuids: tuple[str, ...]
    interval_ms: int
    started_utc: str
    driver: Text
    binding: Text
    warnings: tuple[str, ...]
    cuda_driver: Text = NOT_RECORDED


class NvmlLink(_Record):
    """One NVLink of a device: whether it is up (1 or 0), and its counters by name."""

    link: int
    active: Reading
    counters: dict[str, Reading]


class NvmlDevice(_Record):
    """One device before or after the run.

    Attributes:
        processes: compute processes on it. Their ids are the host's, so inside a container only the count means much.
        violations: counters of time spent throttled; only differences between two inventories mean something.
        links: its NVLinks, or why they are unknown; empty for a device without any.
        facts: what it is and how it is set (PCI id, VBIOS, ECC, MIG, limits, clocks, ...), as text with units by name.
    """

    uuid: str
    name: Text
    memory_total_bytes: Reading
    processes: Reading
    violations: dict[str, Reading]
    links: tuple[NvmlLink, ...] | Unavailable
    facts: dict[str, Text] = {}


class PeerAccess(_Record):
    """Whether two devices reach each other's memory: "ok" or NVML's reason against, over NVLink and at all (read).

    `topology` is their nearest common ancestor on the PCI tree, in NVML's words.
    """

    first: str
    second: str
    nvlink: Text
    read: Text
    topology: Text = NOT_RECORDED


class NvmlInventory(_Record):
    """All devices at one moment."""

    type: Literal["inventory"] = "inventory"
    moment: Literal["before", "after"]
    time_ns: int
    devices: tuple[NvmlDevice, ...]
    peers: tuple[PeerAccess, ...]


class NvmlSample(_Record):
    """One device at one instant.

    Attributes:
        utilisation_percent: share of the driver's last sample period with any kernel running, waiting NCCL kernels
            included: not the share of time spent computing.
        memory_used_bytes: without the driver's own reserve, which is `memory_reserved_bytes`.
        clock_events_mask: bits of `CLOCK_EVENTS`.
    """

    type: Literal["sample"] = "sample"
    time_ns: int
    uuid: str
    utilisation_percent: Reading
    memory_used_bytes: Reading
    memory_reserved_bytes: Reading
    memory_total_bytes: Reading
    sm_clock_mhz: Reading
    clock_events_mask: Reading
    power_mw: Reading
    temperature_c: Reading


class NvmlFooter(_Record):
    """Last line of a sampler that was asked to stop."""

    type: Literal["footer"] = "footer"
    samples: int
    finished_utc: str


NvmlLine = NvmlHeader | NvmlInventory | NvmlSample | NvmlFooter
_KINDS: dict[str, type[NvmlInventory] | type[NvmlSample] | type[NvmlFooter]] = {
    "inventory": NvmlInventory,
    "sample": NvmlSample,
    "footer": NvmlFooter,
}


class NvmlRecords(NamedTuple):
    """One host's file, parsed. A sampler that was killed leaves no inventory after, and no footer."""

    path: Path
    header: NvmlHeader
    before: NvmlInventory | None
    after: NvmlInventory | None
    samples: tuple[NvmlSample, ...]
    footer: NvmlFooter | None


def to_line(record: NvmlLine) -> str:
    """One record as one line of JSON, newline included."""
    return record.model_dump_json() + "\n"


def clock_event_names(mask: int) -> tuple[str, ...]:
    """The set bits of a clock event mask in words; an unknown bit by its value."""
    bits = (1 << position for position in range(mask.bit_length()))
    return tuple(CLOCK_EVENTS.get(bit, f"bit {bit:#x}") for bit in bits if mask & bit)


def read_nvml(path: Path) -> NvmlRecords:
    """Parses one host's file.

    Raises:
        RecordsError: unreadable, no header, another schema, or a line that is not a record (named by number).
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as problem:
        raise RecordsError(f"{path}: cannot be read ({problem.strerror})") from None
    if not lines:
        raise RecordsError(f"{path}: is empty; the sampler died before it could write, make the run again")
    records = [_parse(path, number, line) for number, line in enumerate(lines, start=1)]
    header = records[0]
    assert isinstance(header, NvmlHeader)
    if header.schema_version != SCHEMA_VERSION:
        raise RecordsError(
            f"{path}: schema_version {header.schema_version} is not {SCHEMA_VERSION}; make the run again"
        )
    inventories = {record.moment: record for record in records if isinstance(record, NvmlInventory)}
    footers = [record for record in records if isinstance(record, NvmlFooter)]
    return NvmlRecords(
        path,
        header,
        inventories.get("before"),
        inventories.get("after"),
        tuple(record for record in records if isinstance(record, NvmlSample)),
        footers[-1] if footers else None,
    )


def _parse(path: Path, number: int, line: bytes) -> NvmlLine:
    try:
        values: Any = json.loads(line)
        return (NvmlHeader if number == 1 else _KINDS[values["type"]]).model_validate(values)
    except (ValueError, TypeError, KeyError, RecursionError) as problem:
        what = problem.errors()[0]["msg"] if isinstance(problem, ValidationError) else f"{problem}"
        raise RecordsError(
            f"{path}, line {number}: not a record ({what}); the file was cut or edited, make the run again"
        ) from None
