"""What NVML saw turns time claims INCONCLUSIVE, answers the link claims, and fills the device rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hybrid_runtime.nvml_records import (
    NvmlDevice,
    NvmlFooter,
    NvmlHeader,
    NvmlInventory,
    NvmlLine,
    NvmlSample,
    PeerAccess,
    Unavailable,
    to_line,
)
from hybrid_runtime.verdict import Claim, Outcome, Verdict
from hybrid_runtime.verifier.judge import judge
from tests.verifier.synthetic import MS, deployment, steady, write_run

UUIDS = tuple(f"GPU-{index}" for index in range(3))
START_NS = 10_000 * MS  # of the first measured step
NVLINK = deployment(
    targets={"compute_balance_pp": 1},
    hardware={"device": "cuda", "interconnect": "nvlink", "min_link_bandwidth": "300 GB/s"},
)


def _nvml(
    folder: Path,
    *,
    clocks: Sequence[int] = (1980, 1980, 1980),
    mask: int = 0,
    processes: int = 1,
    peers: tuple[PeerAccess, ...] = (),
    first_ns: int = START_NS,
) -> None:
    """Twenty samples a device; `first_ns` places them in time."""
    devices = tuple(
        NvmlDevice(uuid=uuid, name="gpu", memory_total_bytes=1, processes=processes, violations={}, links=())
        for uuid in UUIDS
    )
    samples = [
        NvmlSample(
            time_ns=first_ns + tick * MS,
            uuid=uuid,
            utilisation_percent=99,
            memory_used_bytes=2**30,
            memory_reserved_bytes=1,
            memory_total_bytes=2**34,
            sm_clock_mhz=clocks[index],
            clock_events_mask=mask,
            power_mw=Unavailable(unavailable="not supported"),
            temperature_c=50,
        )
        for tick in range(20)
        for index, uuid in enumerate(UUIDS)
    ]
    header = NvmlHeader(host="host", uuids=UUIDS, interval_ms=100, started_utc="", driver="1", binding="1", warnings=())
    lines: list[NvmlLine] = [
        header,
        NvmlInventory(moment="before", time_ns=0, devices=devices, peers=peers),
        *samples,
        NvmlInventory(moment="after", time_ns=10**15, devices=devices, peers=peers),
        NvmlFooter(samples=len(samples), finished_utc=""),
    ]
    (folder / "records" / "nvml-host.jsonl").write_text("".join(map(to_line, lines)))


def _judged(folder: Path, **seen: object) -> Verdict:
    run = write_run(folder, steady([10 * MS] * 3, kind="cuda"), NVLINK)
    _nvml(run, **seen)  # type: ignore[arg-type]
    return judge(run)


def _row(verdict: Verdict, name: str) -> Claim:
    return next(row for row in verdict.claims if row.id == name)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ({}, None),
        ({"clocks": (1980, 1980, 1900)}, "clock_spread"),
        ({"clocks": (1980, 1980, 1950)}, None),
        ({"mask": 0x40}, "throttled"),
        ({"mask": 0x01}, None),
        ({"mask": 0x40, "first_ns": 0}, None),  # outside the measured blocks
        ({"processes": 2}, "foreign_process"),
    ],
)
def test_the_driver_can_forbid_to_believe_a_clock(tmp_path: Path, seen: dict[str, object], reason: str | None) -> None:
    row = _row(_judged(tmp_path, **seen), "compute_balance")
    assert row.reason == reason
    assert row.outcome is (Outcome.INCONCLUSIVE if reason else Outcome.PASS)
    assert row.measured is not None


def test_device_rows_say_what_was_read_and_what_was_not(tmp_path: Path) -> None:
    verdict = _judged(tmp_path)
    assert verdict.devices[0].nvml == {
        "utilisation": "99 %",
        "SM clock": "1980 MHz",
        "memory used": "1024 MiB",
        "power": "n/a (not supported)",
        "temperature": "50 °C",
    }
    assert verdict.warnings == ()
    assert "records/nvml-host.jsonl" in [file.path for file in verdict.raw]


def test_a_gpu_run_without_nvml_records_says_so(tmp_path: Path) -> None:
    verdict = judge(write_run(tmp_path, steady([10 * MS] * 3, kind="cuda"), NVLINK))
    assert verdict.devices[0].nvml == {"NVML": "n/a: the run left no NVML records"}
    assert "no NVML records" in verdict.warnings[0]
    row = _row(verdict, "link_present")
    assert (row.outcome, row.reason) == (Outcome.INCONCLUSIVE, "counters_unsupported")
    assert "GPU-0 and GPU-1: n/a" in row.detail


@pytest.mark.parametrize(("second", "outcome"), [("ok", Outcome.PASS), ("not supported", Outcome.FAIL)])
def test_every_pair_that_the_plan_uses_must_be_linked(tmp_path: Path, second: str, outcome: Outcome) -> None:
    peers = (
        PeerAccess(first="GPU-1", second="GPU-0", nvlink="ok", read="ok"),
        PeerAccess(first="GPU-1", second="GPU-2", nvlink=second, read="ok"),
    )
    verdict = _judged(tmp_path, peers=peers)
    row = _row(verdict, "link_present")
    assert (row.outcome, row.threshold) == (outcome, "2")
    assert _row(verdict, "link_bandwidth").reason == "not_measured"
