"""Candidate against baseline: pairs, equal loads, alternation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.verdict import Claim, Outcome
from hybrid_runtime.verifier.comparison import EARLY_STEPS, losses_apart
from hybrid_runtime.verifier.judge import judge
from tests.verifier.synthetic import MS, Synthetic, deployment, noisy, steady, write_run

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
TARGETS = {"latency_reduction_percent": 30, "throughput_gain_percent": 50}
DEPLOYMENT = deployment(targets=TARGETS, baseline={"kind": "pp_only"})


def compared(folder: Path, candidate: Synthetic, baseline: Synthetic | None, **more: Any) -> list[Claim]:
    """The latency row, then the throughput row."""
    rows = judge(write_run(folder, candidate, DEPLOYMENT, baseline=baseline, **more)).claims
    return [row for row in rows if row.id in ("latency_reduction", "throughput_gain")]


def seconds(window_ns: int, steps: int = 120, **more: Any) -> Synthetic:
    return steady([MS] * 3, steps, window_ns=[window_ns] * steps, **more)


@pytest.mark.parametrize(
    ("window_ns", "latency", "throughput"),
    [
        (7 * MS, PASS, FAIL),  # -30 % is +42.9 %, not +50 %
        (7 * MS + 1, FAIL, FAIL),
        (20 * MS // 3, PASS, PASS),
        (20 * MS // 3 + 1, PASS, FAIL),
    ],
)
def test_limits_are_inclusive_and_exact(tmp_path: Path, window_ns: int, latency: Outcome, throughput: Outcome) -> None:
    rows = compared(tmp_path, seconds(window_ns), seconds(10 * MS))
    assert [row.outcome for row in rows] == [latency, throughput]


def test_noise_gives_intervals_in_the_claims_own_direction(tmp_path: Path) -> None:
    rows = compared(tmp_path, noisy([6 * MS] * 3, 0.05, 1), noisy([12 * MS] * 3, 0.05, 2))
    for row in rows:
        assert row.outcome is PASS
        assert row.measured is not None
        assert float(row.measured.lower) < float(row.measured.point) < float(row.measured.upper)
        assert row.measured.samples == 12
    assert rows[0].measured is not None
    assert 49 < float(rows[0].measured.point) < 51


def test_nothing_to_compare_with(tmp_path: Path) -> None:
    assert {row.reason for row in compared(tmp_path / "none", seconds(MS * 7), None)} == {"not_measured"}
    folder = write_run(tmp_path / "big", seconds(MS * 7), DEPLOYMENT)
    (folder / "baseline").mkdir()
    (folder / "baseline" / "infeasible.txt").write_text("one device needs 80 GB and has 32 GB\n")
    rows = judge(folder).claims
    assert {row.reason for row in rows} == {"baseline_infeasible"}
    assert {row.detail for row in rows} == {"one device needs 80 GB and has 32 GB"}


@pytest.mark.parametrize(
    ("baseline", "reason", "says"),
    [
        (seconds(10 * MS, loss=5.52), "loads_differ", "step 0: loss 5.5 against the baseline's 5.52"),
        (seconds(10 * MS, loss=float("nan")), "loads_differ", "step 0"),
        (seconds(10 * MS, loss=None), "loads_differ", "no loss"),
        (seconds(10 * MS, tokens=512), "loads_differ", "step 0: 1024 tokens against 512"),
        (seconds(10 * MS, owned=False), "oversubscribed", "baseline: 3 of 3 ranks share"),
        (seconds(10 * MS, steps=40), "too_few_batches", "4 block pairs"),
        (seconds(10 * MS, foreign_percent=8), "contended", "baseline: others took 8 %"),
    ],
)
def test_sides_that_cannot_be_compared(tmp_path: Path, baseline: Synthetic, reason: str, says: str) -> None:
    candidate = seconds(6 * MS, steps=len(baseline.compute_ns))
    for row in compared(tmp_path, candidate, baseline):
        assert (row.outcome, row.reason) == (INCONCLUSIVE, reason)
        assert says in row.detail
        assert row.measured is not None


def test_losses_agree_closely_at_first_and_on_average_later() -> None:
    early = [("2.0", "2.0001")] * EARLY_STEPS
    assert losses_apart(early, "float32") is None
    assert "step 1: loss 2.0 against the baseline's 2.001" in str(
        losses_apart([*early[:1], ("2.0", "2.001")], "float32")
    )
    assert losses_apart([("2.0", "2.03")], "bfloat16") is None
    scattered = [("2.0", "2.1"), ("2.1", "2.0")] * 50  # rounding has grown: single steps differ, the average does not
    assert losses_apart([*early, *scattered], "float32") is None
    assert "mean loss" in str(losses_apart([*early, *[("2.0", "2.1")] * 50], "float32"))
    assert "step 12" in str(losses_apart([*early, *[("2.0", "2.0")] * 2, ("nan", "nan")], "float32"))
    assert losses_apart([], "float32") is None
