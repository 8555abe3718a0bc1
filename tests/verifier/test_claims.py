"""Claims about one side, from a run folder to the row: balance, memory, utilisation, declared shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.judge import judge
from tests.verifier.synthetic import MS, Synthetic, deployment, judged, noisy, planted, steady, write_run

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
BALANCE = {"targets": {"compute_balance_pp": 1}}


@pytest.mark.parametrize(
    ("side", "outcome", "reason"),
    [
        (steady([3300, 3300, 3400]), PASS, None),
        (steady([3300, 3300, 3401]), FAIL, None),
        (planted(0.5, cv=0.003, seed=1), PASS, None),
        (planted(1.5, cv=0.003, seed=4), FAIL, None),
        (planted(2.0, cv=0.003, seed=5), FAIL, None),
        (planted(1.0, cv=0.003, seed=4), INCONCLUSIVE, "interval_straddles_threshold"),
        (planted(1.0, cv=0.05, seed=7), INCONCLUSIVE, "resolution"),
        (planted(30, cv=0.05, seed=6), FAIL, None),
        (planted(0.5, cv=0.003, seed=1, steps=50), INCONCLUSIVE, "too_few_batches"),
        (planted(30, steps=200, owned=False), FAIL, None),
        (planted(5, steps=200, owned=False), INCONCLUSIVE, "resolution"),
        (planted(0, owned=False, threads_per_rank=2), INCONCLUSIVE, "oversubscribed"),
        (planted(0, foreign_percent=6), INCONCLUSIVE, "contended"),
        (planted(0, foreign_percent=5), PASS, None),
        (planted(0, kind="cuda"), PASS, None),
        (planted(0, kind="cuda", owned=False), INCONCLUSIVE, "oversubscribed"),
    ],
)
def test_compute_balance(tmp_path: Path, side: Synthetic, outcome: Outcome, reason: str | None) -> None:
    row = judged(tmp_path, side, "compute_balance", **BALANCE)
    assert (row.outcome, row.reason) == (outcome, reason), row.detail
    assert row.measured is not None
    assert ("thread_cpu" in row.measured.method) == (row.measured.hardware == "cpu-oversubscribed")


def test_all_four_forms_of_an_imbalance_are_published(tmp_path: Path) -> None:
    row = judged(tmp_path, steady([33 * MS, 33 * MS, 34 * MS]), "compute_balance", **BALANCE)
    assert "range 1 pp, rel_spread 3 %, lambda 2 %, max/min - 1 = 3.03 %" in row.detail
    assert row.measured is not None
    assert (row.measured.exact, row.measured.point) == ("1", "1")
    assert "host:2 holds 34 %, host:0 33 %" in row.detail


def test_the_relative_metric_does_not_loosen_with_the_number_of_devices(tmp_path: Path) -> None:
    targets = {"compute_balance_pp": 1, "compute_balance_metric": "time_rel_spread"}
    row = judged(tmp_path, steady([3300, 3300, 3400]), "compute_balance", targets=targets)
    assert (row.outcome, row.unit) == (FAIL, "%")
    assert row.measured is not None
    assert row.measured.point == "3"


def test_work_is_exact_and_waits_are_no_work(tmp_path: Path) -> None:
    work = {"targets": {"compute_balance_pp": 1, "compute_balance_metric": "work_share_range"}}
    even = steady([10 * MS, 10 * MS, 50 * MS], flops=[33, 33, 34])
    row = judged(tmp_path / "work", even, "compute_balance", **work)
    assert row.outcome is PASS
    assert row.measured is not None
    assert row.measured.evidence == "deterministic"
    assert judged(tmp_path / "odd", steady([1, 1, 1], flops=[330, 330, 341]), "compute_balance", **work).outcome is FAIL
    waiting = steady([10 * MS] * 3, wait_ns=5 * MS)
    assert judged(tmp_path / "wait", waiting, "compute_balance", **BALANCE).outcome is PASS


def test_two_clocks_that_disagree_decide_nothing(tmp_path: Path) -> None:
    rows = [[10 * MS, 10 * MS, 10 * MS]] * 120
    hidden = [[10 * MS, 10 * MS, 9 * MS]] * 120
    row = judged(tmp_path, Synthetic(rows, cpu_ns=hidden), "compute_balance", **BALANCE)
    assert (row.outcome, row.reason) == (INCONCLUSIVE, "instrument_disagreement")


def test_one_device_has_no_balance(tmp_path: Path) -> None:
    one = steady([10 * MS], mesh=Mesh())
    assert judged(tmp_path, one, "compute_balance", **BALANCE).outcome is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("memory", "outcome", "reason", "point"),
    [
        ([33, 33, 34], PASS, None, "1"),
        ([20_000_000, 20_000_000, 28_000_000], FAIL, None, "11.7647"),
        ([[100, 100, 100], [100, 100, 110], [100, 100, 100]], INCONCLUSIVE, "repeat_differs", "3.2258"),
    ],
)
def test_memory_balance_is_exact(tmp_path: Path, memory: Any, outcome: Outcome, reason: str | None, point: str) -> None:
    targets = {"targets": {"memory_balance_pp": 1}}
    for owned in (True, False):
        side = steady([MS] * 3, memory_bytes=memory, owned=owned)
        row = judged(tmp_path / str(owned), side, "memory_balance", **targets)
        assert row.measured is not None
        assert (row.outcome, row.reason, row.measured.point) == (outcome, reason, point)


def test_utilisation_is_judged_where_the_window_is_real(tmp_path: Path) -> None:
    side = steady([900, 950, 990], window_ns=[1000] * 120)
    targets = {"targets": {"utilisation_percent": 90}}
    row = judged(tmp_path / "own", side, "utilisation", **targets)
    assert (row.outcome, row.threshold) == (PASS, "90")
    assert "least busy is host:0: bubble 10 %, exposed wait 0 %, the schedule allows 90 % busy" in row.detail
    shared = steady([900, 950, 990], window_ns=[1000] * 120, owned=False)
    row = judged(tmp_path / "shared", shared, "utilisation", **targets)
    assert (row.outcome, row.reason) == (INCONCLUSIVE, "oversubscribed")
    assert row.measured is not None
    assert row.measured.point == "90"


def test_devices_and_their_memory(tmp_path: Path) -> None:
    hardware = {"hardware": {"device": "cuda", "devices": 3, "memory_per_device": "32 GB"}}
    side = steady([MS] * 3, kind="cuda", device_bytes=32 * 10**9)
    assert judged(tmp_path / "a", side, "device_memory", **hardware).outcome is PASS
    assert judged(tmp_path / "b", side, "device_count", **hardware).outcome is PASS
    small = steady([MS] * 3, kind="cuda", device_bytes=32 * 10**9 - 1)
    assert judged(tmp_path / "c", small, "device_memory", **hardware).outcome is FAIL
    four = {"hardware": {"device": "cuda", "devices": 4}}
    assert judged(tmp_path / "d", side, "device_count", **four).outcome is FAIL


def test_noise_is_not_needed_for_a_device_row(tmp_path: Path) -> None:
    side = noisy([10 * MS, 20 * MS, 30 * MS], 0.01, 1, wait_ns=MS)
    verdict = judge(write_run(tmp_path, side, deployment()))
    assert [row.device for row in verdict.devices] == ["host:0", "host:1", "host:2"]
    assert verdict.devices[0].wait_ns == 120 * MS
    assert verdict.devices[2].compute_ns == sum(row[2] for row in side.compute_ns)
    assert verdict.devices[0].nvml == {"NVML": "n/a: the ranks ran on CPUs"}
