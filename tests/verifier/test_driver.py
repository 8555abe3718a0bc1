"""What NVML saw turns time claims INCONCLUSIVE, answers the link claims, and fills the device rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_runtime.nvml_records import PeerAccess
from hybrid_runtime.verdict import Claim, Outcome, Verdict
from hybrid_runtime.verifier.judge import judge
from tests.verifier.nvml_examples import write_nvml
from tests.verifier.synthetic import MS, deployment, steady, write_run

NVLINK = deployment(
    targets={"compute_balance_pp": 1},
    hardware={"device": "cuda", "interconnect": "nvlink", "min_link_bandwidth": "300 GB/s"},
)


def _judged(folder: Path, **seen: object) -> Verdict:
    run = write_run(folder, steady([10 * MS] * 3, kind="cuda"), NVLINK)
    write_nvml(run, **seen)  # type: ignore[arg-type]
    return judge(run)


def _row(verdict: Verdict, name: str) -> Claim:
    return next(row for row in verdict.claims if row.id == name)


@pytest.mark.parametrize(
    "seen",
    [
        {},
        {"clocks": (1980, 1980, 1950)},
        {"mask": 0x01},
        {"mask": 0x40, "first_ns": 0},  # outside the measured blocks
        {"slowed_ns": 10**13},  # a hundredth of the run
    ],
)
def test_what_does_no_harm_does_not_forbid_to_believe_a_clock(tmp_path: Path, seen: dict[str, object]) -> None:
    """What does is in test_lies.py."""
    row = _row(_judged(tmp_path, **seen), "compute_balance")
    assert (row.outcome, row.reason) == (Outcome.PASS, None)


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
