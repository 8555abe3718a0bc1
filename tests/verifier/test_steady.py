"""Warm-up and drift: found where they are, silent where there is only noise, and counted only where they can turn."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decide import decide_floor, decide_range
from hybrid_runtime.verifier.decide_ratio import decide_ratio
from hybrid_runtime.verifier.steady import (
    busy_drifts,
    drifting,
    fit_line,
    level_drift,
    mser5,
    share_drifts,
    steady_from,
)

ONE_PP = Fraction(1, 100)


def noise(seed: int, rows: int, columns: int = 1, cv: float = 0.01, correlation: float = 0.0) -> np.ndarray:
    """1 + noise of a coefficient of variation, correlated from row to row."""
    values = np.random.default_rng(seed).standard_normal((rows, columns))
    for row in range(1, rows):
        values[row] = correlation * values[row - 1] + (1 - correlation**2) ** 0.5 * values[row]
    return 1 + cv * values


def integers(table: np.ndarray) -> list[list[int]]:
    return [[round(value) for value in row] for row in 10**8 * table]


def series(table: np.ndarray) -> list[int]:
    return [row[0] for row in integers(table)]


def naive_mser5(values: list[int]) -> int:
    """The definition, in floats and without running sums, for lengths that five divides."""
    means = [float(np.mean(values[start : start + 5])) for start in range(0, len(values), 5)]
    errors = [np.var(means[start:]) / (len(means) - start) for start in range(len(means) // 2 + 1)]
    return 5 * int(np.argmin(errors))


def test_mser5_drops_the_warm_up_and_nothing_of_a_constant() -> None:
    warm_up = np.concatenate([np.linspace(3, 1.2, 20), np.ones(100)])[:, None]
    assert all(20 <= mser5(series(warm_up * noise(seed, 120))) <= 60 for seed in range(50))
    assert mser5(series(warm_up * noise(2, 120))) == 20
    assert mser5(series(warm_up * noise(2, 120))[:118]) == 20
    assert mser5([7] * 100) == 0
    assert mser5([]) == mser5([1, 2, 3]) == 0


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=12), st.integers(0, 10**6))
def test_mser5_is_its_definition(levels: list[int], seed: int) -> None:
    chance = np.random.default_rng(seed)
    values = [int(level * 1000 + chance.integers(0, 10**5)) for level in levels for _ in range(5)]
    assert mser5(values) == naive_mser5(values)


def test_steady_state_is_found_after_warm_up_and_never_in_a_series_that_keeps_moving() -> None:
    warm_up = np.concatenate([np.linspace(3, 1.2, 20), np.ones(100)])[:, None]
    assert steady_from(series(warm_up * noise(2, 120))) == 20
    assert steady_from(series(np.linspace(1, 1.2, 120)[:, None] * noise(3, 120))) is None
    late_step = np.concatenate([np.ones(80), np.full(40, 1.2)])[:, None]
    assert steady_from(series(late_step * noise(4, 120))) is None
    assert steady_from(series(noise(5, 8))) is None  # too short to tell


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_steady_noise_is_hardly_ever_called_drifting(correlation: float) -> None:
    runs = 400
    alarms = sum(drifting(series(noise(seed, 100, correlation=correlation))) for seed in range(runs))
    assert alarms <= 8  # at a rate of 1 %, more in 2 % of cases


def test_a_drift_is_measured_between_the_halves() -> None:
    rows = integers(np.linspace([0.99, 1, 1.01], [1.01, 1, 0.99], 100) * noise(6, 100, 3, 0.001))
    first, second, third = share_drifts(rows, 1)
    assert first == pytest.approx(0.01 / 3, rel=0.1)
    assert third == pytest.approx(-0.01 / 3, rel=0.1)
    assert abs(second) < abs(first) / 10
    busy, _ = busy_drifts([[row[0], row[1], 2 * 10**8] for row in rows], 1)
    assert busy == pytest.approx(0.005, rel=0.1)
    assert level_drift([10 * index for index in range(20)]) == 100
    assert fit_line([value - 95 for value in range(0, 200, 10)]).rest == [0] * 20


@given(st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=40))
def test_a_fitted_line_leaves_nothing_that_a_line_explains(values: list[int]) -> None:
    residuals = [value * len(values) - sum(values) for value in values]
    rest = fit_line(residuals).rest
    assert sum(rest) == 0
    assert sum(place * value for place, value in enumerate(rest)) == 0


def test_devices_that_swap_their_shares_do_not_hide_behind_equal_totals() -> None:
    swapping = integers(np.linspace([0.97, 1, 1.03], [1.03, 1, 0.97], 120) * noise(7, 120, 3, 0.002))
    decision = decide_range(swapping, ONE_PP, 1)
    assert (decision.outcome, decision.reason) == (Outcome.INCONCLUSIVE, "no_steady_state")
    assert decision.more_needed is None
    assert "between the halves" in decision.note


def test_a_drift_that_cannot_turn_the_answer_does_not_stop_it() -> None:
    gentle = integers(np.linspace([0.999, 1, 1.001], [1.001, 1, 0.999], 120) * noise(8, 120, 3, 0.0005))
    assert any(share_drifts(gentle, 1))
    assert decide_range(gentle, ONE_PP, 1).outcome is Outcome.PASS
    gross = integers(np.linspace([0.7, 1, 1.30], [0.72, 1, 1.28], 120) * noise(9, 120, 3, 0.0005))
    assert any(share_drifts(gross, 1))
    assert decide_range(gross, ONE_PP, 1).outcome is Outcome.FAIL


def test_a_busy_share_that_falls_through_the_floor_is_not_steady() -> None:
    busy = integers(np.linspace([0.93, 0.97], [0.89, 0.97], 120) * noise(10, 120, 2, 0.002))
    rows = [[*row, 10**8] for row in busy]
    assert decide_floor(rows, Fraction(90, 100), 1).reason == "no_steady_state"
    assert decide_floor(rows, Fraction(80, 100), 1).outcome is Outcome.PASS


def test_only_a_drift_of_the_ratio_itself_stops_a_comparison() -> None:
    both = np.linspace(1, 2, 24)[:, None] * noise(11, 24, 2, 0.005)  # the machine slows down to half its speed
    same = [Fraction(candidate, baseline) * Fraction(69, 100) for candidate, baseline in integers(both)]
    assert decide_ratio(same, Fraction(7, 10)).outcome is Outcome.PASS
    apart = [ratio * Fraction(100 + index, 112) for index, ratio in enumerate(same)]
    assert decide_ratio(apart, Fraction(7, 10)).reason == "no_steady_state"
    assert decide_ratio(apart, Fraction(9, 10)).outcome is Outcome.PASS
