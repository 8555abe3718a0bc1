"""The decision rules on numbers alone: exactness at the limit, invariances, and how often they err (Monte Carlo)."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.exact import parse_share
from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decide import (
    decide_exact_range,
    decide_floor,
    decide_range,
    decide_repeated_range,
)
from hybrid_runtime.verifier.decide_ratio import decide_ratio

ONE_PP = Fraction(1, 100)
PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


def test_all_exact_1_pp_pairs_pass_and_a_millionth_more_fails() -> None:
    for low in range(9901):
        assert parse_share(f"{(low + 100) / 100:.2f}%").value - parse_share(f"{low / 100:.2f}%").value <= ONE_PP
    assert decide_exact_range([33, 33, 34], ONE_PP).outcome is PASS
    assert decide_exact_range([3300, 3300, 3401], ONE_PP).outcome is FAIL
    assert decide_exact_range([330_000_000, 330_000_000, 340_000_001], ONE_PP).outcome is FAIL


def test_noise_free_samples_are_compared_exactly_and_called_suspicious() -> None:
    exactly = decide_range([[33, 33, 34]] * 100, ONE_PP, 10)
    assert (exactly.outcome, exactly.point, exactly.lower, exactly.upper) == (PASS, ONE_PP, ONE_PP, ONE_PP)
    assert "suspicious" in exactly.note
    assert exactly.worst == (2, 0)
    assert decide_range([[3300, 3300, 3401]] * 100, ONE_PP, 10).outcome is FAIL


def test_one_noisy_sample_decides_nothing() -> None:
    decision = decide_range([[33, 33, 50]] * 10, ONE_PP, 10)
    assert (decision.outcome, decision.reason) == (INCONCLUSIVE, "too_few_batches")
    assert "100 measured steps are needed, 10 were made" in decision.note


def test_repeats_that_differ_decide_only_on_one_side_of_the_limit() -> None:
    assert decide_repeated_range([(20, 20, 28)] * 3, ONE_PP).point == Fraction(8, 68)
    assert decide_repeated_range([(20, 20, 28)] * 3, ONE_PP).outcome is FAIL
    straddling = decide_repeated_range([(100, 100, 100), (100, 100, 110)], ONE_PP)
    assert (straddling.outcome, straddling.reason) == (INCONCLUSIVE, "repeat_differs")
    assert decide_repeated_range([(100, 100, 100), (1000, 1000, 1001)], ONE_PP).outcome is PASS
    assert decide_repeated_range([(20, 20, 28), (20, 20, 29)], ONE_PP).outcome is FAIL
    assert decide_repeated_range([(33, 33, 33)], ONE_PP).reason == "too_few_batches"


def test_the_resolution_gate_stops_all_but_gross_failures() -> None:
    chance = np.random.default_rng(3)
    coarse = _steps(chance, [100, 100, 101.0], 0.15, 200)
    assert decide_range(coarse, ONE_PP, 10).reason == "resolution"
    gross = _steps(chance, [100, 100, 150], 0.15, 200)
    assert decide_range(gross, ONE_PP, 10).outcome is FAIL
    assert "about" in decide_range(coarse, ONE_PP, 10).note


def test_a_clock_trusted_to_10_pp_passes_loose_limits_and_fails_gross_gaps_only() -> None:
    trusted = Fraction(10, 100)
    for gap, delta_pp, outcome in ((0, 1, INCONCLUSIVE), (30, 1, INCONCLUSIVE), (90, 1, FAIL), (0, 10, PASS)):
        decision = decide_range([[100, 100, 100 + gap]] * 100, Fraction(delta_pp, 100), 10, trusted_to=trusted)
        assert decision.outcome is outcome, (gap, delta_pp)


def test_a_resolved_failure_stands_at_every_stricter_limit() -> None:
    steps = _steps(np.random.default_rng(5), [98.5, 100, 101.7], 0.01, 200)
    decision = decide_range(steps, ONE_PP, 2)
    assert decision.outcome is FAIL
    assert decision.half_width < decision.lower / 4
    for stricter in (Fraction(6, 1000), Fraction(5, 1000), Fraction(1, 1000), Fraction()):  # some with half-width > /4
        assert decide_range(steps, stricter, 2).outcome is FAIL


@pytest.mark.parametrize(("gap_pp", "outcome"), [(0.8, PASS), (1.2, FAIL)])
def test_as_many_more_steps_as_asked_for_are_about_enough(gap_pp: float, outcome: Outcome) -> None:
    extra = round(gap_pp * 1.5 * 10**6)
    wobble = [(1, 1), (-1, 1), (-1, -1), (1, -1)]  # uncorrelated, of 2 %
    steps = [
        [10**8 - extra + 2 * 10**6 * first, 10**8, 10**8 + extra + 2 * 10**6 * last] for first, last in wobble * 400
    ]
    first = decide_range(steps[:40], ONE_PP, 1)
    assert first.outcome is INCONCLUSIVE
    assert first.more_needed is not None
    assert "more steps needed" in first.note
    quarters = -(-first.more_needed // 4)  # only whole patterns have their mean
    enough, half = (decide_range(steps[: 40 + 4 * more], ONE_PP, 1) for more in (quarters, quarters // 3))
    assert (enough.outcome, half.outcome) == (outcome, INCONCLUSIVE)


def test_the_worst_pair_may_be_without_spread_while_others_have_it() -> None:
    steps = [[4000 + wobble, 4000 - 2 * wobble, 2000 + wobble] for wobble in (-90, 90, 90, -90) * 20]
    assert decide_range(steps, ONE_PP, 1).outcome is FAIL
    decision = decide_range(steps, Fraction(21, 100), 1)
    assert (decision.point, decision.outcome) == (Fraction(1, 5), PASS)


def test_more_steps_are_not_asked_for_where_they_cannot_help() -> None:
    noisy = _steps(np.random.default_rng(4), [97, 100, 103], 0.01, 100)
    untrusted = decide_range(noisy, ONE_PP, 2, trusted_to=Fraction(10, 100))
    assert (untrusted.reason, untrusted.more_needed) == ("resolution", None)
    exact = decide_range([[33, 33, 34]] * 100, ONE_PP, 2, trusted_to=Fraction(10, 100))
    assert (exact.reason, exact.more_needed) == ("resolution", None)
    on_the_limit = [[99, 101 + wobble, 1000] for wobble in (-1, 1, 1, -1) * 20]
    assert decide_floor(on_the_limit, Fraction(99, 1000), 1).outcome is PASS  # exact; the other device is well above
    on_the_limit = [[99 + wobble, 200, 1000] for wobble in (-1, 1, 1, -1) * 20]
    decision = decide_floor(on_the_limit, Fraction(99, 1000), 1)
    assert (decision.reason, decision.more_needed) == ("interval_straddles_threshold", None)
    assert decision.because("contended", "somebody else computes").more_needed is None
    assert decide_range(noisy[:12], ONE_PP, 2).more_needed is not None
    assert decide_range(noisy, ONE_PP, 2).more_needed is None  # decided


def test_a_smaller_error_budget_widens_the_bounds() -> None:
    steps = _steps(np.random.default_rng(6), [98.5, 100, 101.5], 0.01, 100)
    wide, narrow = (decide_range(steps, ONE_PP, 2, alpha=alpha) for alpha in (0.01, 0.05))
    assert wide.lower < narrow.lower < narrow.upper < wide.upper
    rows = [[*row, 105 * 10**6] for row in steps]
    wide, narrow = (decide_floor(rows, Fraction(9, 10), 2, alpha=alpha) for alpha in (0.01, 0.05))
    assert wide.lower < narrow.lower < narrow.upper < wide.upper
    assert (wide.alpha, narrow.alpha) == (0.01, 0.05)


def test_utilisation_is_the_least_busy_devices() -> None:
    assert decide_floor([[95, 90, 100]] * 100, Fraction(90, 100), 10).outcome is PASS
    decision = decide_floor([[95, 89, 100]] * 100, Fraction(90, 100), 10)
    assert (decision.outcome, decision.worst, decision.point) == (FAIL, (1,), Fraction(89, 100))
    chance = np.random.default_rng(1)
    rows = [[*row, 10**9] for row in _steps(chance, [900, 950], 0.02, 300)]
    assert decide_floor(rows, Fraction(90, 100), 10).outcome is INCONCLUSIVE
    assert decide_floor(rows, Fraction(88, 100), 10).outcome is PASS
    assert decide_floor(rows, Fraction(92, 100), 10).outcome is FAIL
    assert decide_floor(rows[:50], Fraction(50, 100), 10).reason == "too_few_batches"


def test_a_ratio_without_spread_is_exact_and_a_noisy_one_has_an_interval() -> None:
    seven_tenths = Fraction(7, 10)
    assert decide_ratio([seven_tenths] * 6, seven_tenths).outcome is PASS
    assert decide_ratio([seven_tenths + Fraction(1, 10**30)] * 6, seven_tenths).outcome is FAIL
    noisy = [Fraction(69 + 2 * (index % 2), 100) for index in range(12)]
    assert decide_ratio(noisy, seven_tenths).reason == "interval_straddles_threshold"
    assert decide_ratio(noisy, Fraction(8, 10)).outcome is PASS
    assert decide_ratio(noisy, Fraction(6, 10)).outcome is FAIL
    assert decide_ratio(noisy[:4], Fraction(8, 10)).reason == "too_few_batches"


_steps_strategy = st.lists(st.lists(st.integers(1, 10**9), min_size=3, max_size=3), min_size=20, max_size=40)


@settings(max_examples=60, deadline=None)
@given(steps=_steps_strategy, order=st.permutations(range(3)), unit=st.sampled_from([1, 1000, 10**6]))
def test_relabelled_ranks_and_other_time_units_give_the_same_decision(
    steps: list[list[int]], order: list[int], unit: int
) -> None:
    plain = decide_range(steps, ONE_PP, 2)
    other = decide_range([[row[rank] * unit for rank in order] for row in steps], ONE_PP, 2)
    assert (plain.outcome, plain.reason, plain.point, plain.lower, plain.upper) == (
        other.outcome,
        other.reason,
        other.point,
        other.lower,
        other.upper,
    )


@pytest.mark.parametrize(
    ("gap_pp", "cv", "expected", "at_least"),
    [(1.0, 0.01, INCONCLUSIVE, 0.90), (0.5, 0.01, PASS, 0.97), (1.5, 0.01, FAIL, 0.97), (0.0, 0.01, PASS, 0.97)],
)
def test_operating_characteristics(gap_pp: float, cv: float, expected: Outcome, at_least: float) -> None:
    """Fifty batches, three devices; at exactly the limit each wrong answer stays under 6 %."""
    runs = 300
    chance = np.random.default_rng(20260101)
    extra = gap_pp / 100 * 300
    means = [100 - extra / 2, 100, 100 + extra / 2]
    found = Counter(decide_range(_steps(chance, means, cv, 50), ONE_PP, 1).outcome for _ in range(runs))
    assert found[expected] / runs > at_least, found
    if gap_pp == 1.0:
        assert found[PASS] / runs < 0.06
        assert found[FAIL] / runs < 0.06


def test_correlated_steps_do_not_make_the_limit_decidable() -> None:
    """Autocorrelation .5 from step to step; batches are lengthened, so neither wrong answer becomes common."""
    chance = np.random.default_rng(7)
    found: Counter[Outcome] = Counter()
    for _ in range(120):
        found[decide_range(_steps(chance, [98.5, 100, 101.5], 0.01, 300, correlation=0.5), ONE_PP, 5).outcome] += 1
    assert found[PASS] / 120 < 0.08
    assert found[FAIL] / 120 < 0.08


def _steps(
    chance: np.random.Generator, means: list[float], cv: float, count: int, correlation: float = 0.0
) -> list[list[int]]:
    """Times in ns around `means` (ms)."""
    noise = chance.standard_normal((count, len(means)))
    for step in range(1, count):
        noise[step] = correlation * noise[step - 1] + (1 - correlation**2) ** 0.5 * noise[step]
    return [[int(value) for value in row] for row in np.asarray(means) * 1e6 * (1 + cv * noise)]
