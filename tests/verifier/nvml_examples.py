"""NVML's records of a synthetic GPU run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybrid_runtime.nvml_records import (
    NvmlDevice,
    NvmlFooter,
    NvmlHeader,
    NvmlInventory,
    NvmlLine,
    NvmlSample,
    PeerAccess,
    Text,
    Unavailable,
    to_line,
)
from tests.verifier.synthetic import MS

UUIDS = tuple(f"GPU-{index}" for index in range(3))
START_NS = 10_000 * MS  # of the first measured step


def write_nvml(
    folder: Path,
    *,
    clocks: Sequence[int] = (1980, 1980, 1980),
    mask: int = 0,
    processes: int = 1,
    peers: tuple[PeerAccess, ...] = (),
    first_ns: int = START_NS,
    slowed_ns: int = 0,
    used_bytes: Sequence[int] = (2**30, 2**30, 2**30),
    uuids: Sequence[str] = UUIDS,
    facts: dict[str, Text] | None = None,
) -> None:
    """Twenty samples a device; `first_ns` places them in time. `slowed_ns` is how far a violation counter moves."""
    before, after = (
        tuple(
            NvmlDevice(
                uuid=uuid, name="gpu", memory_total_bytes=1, processes=processes, links=(), facts=facts or {},
                violations={"hardware_thermal": counter, "power": Unavailable(unavailable="not supported")},
            )
            for uuid in uuids
        )
        for counter in (7, 7 + slowed_ns)
    )  # fmt: skip
    samples = [
        NvmlSample(
            time_ns=first_ns + tick * MS,
            uuid=uuid,
            utilisation_percent=99,
            memory_used_bytes=used_bytes[index],
            memory_reserved_bytes=1,
            memory_total_bytes=2**34,
            sm_clock_mhz=clocks[index],
            clock_events_mask=mask,
            power_mw=Unavailable(unavailable="not supported"),
            temperature_c=50,
        )
        for tick in range(20)
        for index, uuid in enumerate(uuids)
    ]
    header = NvmlHeader(
        host="host", uuids=tuple(uuids), interval_ms=100, started_utc="", driver="1", binding="1", warnings=()
    )
    lines: list[NvmlLine] = [
        header,
        NvmlInventory(moment="before", time_ns=0, devices=before, peers=peers),
        *samples,
        NvmlInventory(moment="after", time_ns=10**15, devices=after, peers=peers),
        NvmlFooter(samples=len(samples), finished_utc=""),
    ]
    (folder / "records" / "nvml-host.jsonl").write_text("".join(map(to_line, lines)))
