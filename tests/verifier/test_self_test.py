"""The self-test catches an instrument that is blind to what was planted, and speed-ups where there are none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hybrid_runtime.records import StepRecord
from hybrid_runtime.verdict import Outcome, Sampling, SelfCheck, Verdict
from hybrid_runtime.verifier.judge import judge
from tests.verifier.synthetic import (
    MS,
    Synthetic,
    append_steps,
    bare_step,
    deployment,
    noisy,
    planted,
    planted_step,
    steady,
    write_run,
)

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
PLANTED = ("planted_0.5", "planted_1.5", "planted_2")


def verdict_of(folder: Path, side: Synthetic, steps: list[list[StepRecord]], **targets: object) -> Verdict:
    settings = deployment(targets={"compute_balance_pp": 1, **targets}, measurement={"looks": 1})
    log = Sampling(looks_allowed=1, alpha_per_look="0.05", budget_s=900, looks=(), stopped="single look")
    append_steps(write_run(folder, side, settings), steps)
    (folder / "sampling.json").write_text(log.model_dump_json())
    return judge(folder)


def checks_of(verdict: Verdict) -> dict[str, SelfCheck]:
    return {check.id: check for check in verdict.self_test}


def toy(cv: float, seed: int = 0, steps: int = 120, slow: float = 1.0) -> list[list[StepRecord]]:
    """Planted steps whose unit takes 1 ms on average; rank 0 is slower than the others by a factor."""
    chance = random.Random(seed)
    units = [[round(MS * factor * max(0.1, chance.gauss(1, cv))) for factor in (slow, 1, 1)] for _ in range(steps)]
    return [planted_step(unit, k, 10**9 * 2 * k) for k, unit in enumerate(units)]


@pytest.mark.parametrize(("cv", "slow"), [(0.0, 1.0), (0.01, 1.0), (0.01, 1.1)])
def test_planted_imbalances_come_out_as_planted_also_beside_a_slow_device(
    tmp_path: Path, cv: float, slow: float
) -> None:
    checks = checks_of(verdict_of(tmp_path, steady([10 * MS] * 3), toy(cv, slow=slow)))
    assert [(checks[name].outcome, checks[name].detail.split(";")[0]) for name in PLANTED] == [
        (PASS, "came out PASS"),
        (PASS, "came out FAIL"),
        (PASS, "came out FAIL"),
    ]


def test_noise_that_hides_the_planted_is_inconclusive(tmp_path: Path) -> None:
    checks = checks_of(verdict_of(tmp_path, steady([10 * MS] * 3), toy(0.5, seed=1)))
    assert {checks[name].outcome for name in PLANTED} == {INCONCLUSIVE}


def test_an_instrument_that_equalises_fails_and_takes_the_balance_verdict_with_it(tmp_path: Path) -> None:
    """As a clock would that counts waiting for the slowest as work: every rank seems to do the same."""
    steps = toy(0.0)
    for row in steps:
        longest = max((step.spans for step in row), key=len)
        for rank, step in enumerate(row):
            spans = step.spans if len(step.spans) > 1 else (step.spans[0]._replace(end_ns=longest[-1].end_ns),)
            row[rank] = step.model_copy(update={"spans": spans})
    verdict = verdict_of(tmp_path, steady([10 * MS] * 3), steps)
    checks = checks_of(verdict)
    assert checks["planted_2"].outcome is FAIL
    assert checks["planted_2"].reason == "planted_failed"
    balance = next(claim for claim in verdict.claims if claim.id == "compute_balance")
    assert (balance.outcome, balance.reason) == (INCONCLUSIVE, "planted_failed")


def test_a_step_without_extra_work_is_not_taken_for_a_planted_one(tmp_path: Path) -> None:
    steps = toy(0.0)
    steps[7] = [step.model_copy(update={"spans": step.spans[:1]}) for step in steps[7]]
    checks = checks_of(verdict_of(tmp_path, steady([10 * MS] * 3), steps))
    assert {checks[name].outcome for name in PLANTED} == {FAIL}


def test_a_shared_clock_is_trusted_once_it_has_resolved_the_planted(tmp_path: Path) -> None:
    """Ranks share cores: without the self-test's evidence, a limit of 1 point is beyond thread CPU time."""
    side = noisy([10 * MS] * 3, 0.01, 3, 240, owned=False)
    without = judge(write_run(tmp_path / "without", side, deployment(targets={"compute_balance_pp": 1})))
    assert without.claims[0].reason == "resolution"
    balanced = verdict_of(tmp_path / "with", side, toy(0.01))
    assert (balanced.claims[0].id, balanced.claims[0].outcome) == ("compute_balance", PASS)
    uneven = verdict_of(tmp_path / "uneven", planted(1.6, 0.01, steps=240, owned=False), toy(0.01))
    assert uneven.claims[0].outcome is FAIL


def bare(windows_ns: list[int], block_steps: int = 10) -> list[list[StepRecord]]:
    """Blocks of bare steps, one block per window."""
    rows = []
    for block, window_ns in enumerate(windows_ns):
        for k in range(block_steps):
            rows.append(bare_step(window_ns, (block * block_steps + k) * 10**9, 3, block))
    return rows


def test_equal_blocks_pass_a_against_a(tmp_path: Path) -> None:
    checks = checks_of(verdict_of(tmp_path, steady([10 * MS] * 3), bare([20 * MS] * 12), latency_reduction_percent=30))
    assert checks["aa"].outcome is PASS
    assert "beyond 12.62 %" in checks["aa"].text  # exp(-ln 0.7 / 3) - 1


def test_a_drift_is_not_taken_for_a_difference(tmp_path: Path) -> None:
    windows = [round(20 * MS * (1 + 0.003 * block)) for block in range(12)]
    checks = checks_of(verdict_of(tmp_path, steady([10 * MS] * 3), bare(windows), throughput_gain_percent=5))
    assert checks["aa"].outcome is PASS


def test_a_machine_that_speeds_up_every_other_block_fails_a_against_a(tmp_path: Path) -> None:
    """Blocks 2, 3, 6, 7 ... are the pseudo-side b: if they are faster, so would be any baseline or candidate."""
    windows = [20 * MS if block % 4 in (0, 3) else 10 * MS for block in range(20)]
    verdict = verdict_of(tmp_path, steady([10 * MS] * 3), bare(windows), latency_reduction_percent=30)
    check = checks_of(verdict)["aa"]
    assert (check.outcome, check.reason) == (FAIL, "aa_failed")


@pytest.mark.parametrize(("bare_ns", "outcome", "warned"), [(20 * MS, PASS, False), (19 * MS, FAIL, True)])
def test_what_measuring_costs_is_said(tmp_path: Path, bare_ns: int, outcome: Outcome, warned: bool) -> None:
    side = steady([10 * MS] * 3, window_ns=[20 * MS] * 120)
    verdict = verdict_of(tmp_path, side, bare([bare_ns] * 12))
    assert checks_of(verdict)["observer"].outcome is outcome
    assert any("recording spans was not shown to cost" in warning for warning in verdict.warnings) == warned
