"""Batches, autocorrelation and ratios against hand-made numbers and textbook values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from hybrid_runtime.verifier.statistics import (
    Rows,
    batch_sums,
    cautious_correlation,
    corrected_error,
    independent_batches,
    lag1_autocorrelation,
    ratio_of_totals,
    share_interval,
    student_quantile,
)


@pytest.mark.parametrize(("probability", "freedom", "table"), [(0.95, 9, 1.833), (0.975, 11, 2.201), (0.99, 4, 3.747)])
def test_student_quantiles_are_those_of_the_table(probability: float, freedom: int, table: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(table, abs=5e-4)


def test_every_step_enters_exactly_one_batch() -> None:
    rows = [[step, 1] for step in range(47)]
    batches = batch_sums(rows, 10)
    assert [count for _, count in batches] == [11, 12, 12, 12]
    assert sum(total for total, _ in batches) == sum(range(47))
    assert batch_sums(rows, 100) == [(sum(range(47)), 47)]


def test_autocorrelation_of_a_drift_of_alternation_and_of_nothing() -> None:
    drift = [step - 9 for step in range(19)]
    assert lag1_autocorrelation([drift]) > 0.8
    assert lag1_autocorrelation([[1, -1] * 10]) < -0.9
    assert lag1_autocorrelation([[0] * 10]) == 0.0


def test_a_ratio_of_totals_has_no_error_without_spread_and_the_usual_one_with_it() -> None:
    assert ratio_of_totals([1, 2, 3], [2, 4, 6]) == (Fraction(1, 2), 0.0, [0, 0, 0])
    ratio = ratio_of_totals([4, 6, 5, 5], [10, 10, 10, 10])
    assert ratio.point == Fraction(1, 2)
    assert ratio.error == pytest.approx((2 / 3 / 4) ** 0.5 / 10)  # sd of the numerators / sqrt(n) / mean denominator


def test_batches_grow_until_neighbours_are_uncorrelated() -> None:
    slow_wave = [[100 + (step // 40) % 2] for step in range(1600)]

    def residuals(rows: Rows) -> list[list[int]]:
        total = sum(row[0] for row in rows)
        return [[row[0] * len(rows) - total for row in rows]]

    batches = independent_batches(slow_wave, 10, residuals)
    assert batches.steps_per_batch == 20  # a a b b a a b b: every other neighbour agrees
    assert batches.enough
    assert independent_batches(slow_wave[:120], 10, residuals).steps_per_batch == 10  # too few for longer ones
    assert not independent_batches(slow_wave[:90], 10, residuals).enough


def test_an_error_is_widened_by_the_correlation_that_batches_may_have() -> None:
    wobble = [-1, 1, 1, -1] * 25  # lag-1 autocorrelation 0
    slow = [-1] * 5 + ([1] * 10 + [-1] * 10) * 4 + [1] * 10 + [-1] * 5  # 0.8
    assert cautious_correlation(wobble) == pytest.approx(0.05 + 1 / 96, abs=0.02)
    assert cautious_correlation(slow) > 0.8
    assert cautious_correlation([0] * 100) == 0
    plain, wide = corrected_error(1.0, wobble), corrected_error(1.0, slow)
    assert 1 < plain.value < 1.1
    assert wide.value > 3
    assert plain.freedom > 80
    assert wide.freedom < 12
    assert corrected_error(0.0, [0] * 100).reach(0.05) == 0


def test_share_intervals_hold_the_true_share_about_as_often_as_they_say() -> None:
    chance, held, runs = np.random.default_rng(8), 0, 300
    for _ in range(runs):
        steps = (10**6 * np.array([1, 1, 2]) * (1 + 0.02 * chance.standard_normal((60, 3)))).astype(int).tolist()
        interval = share_interval(steps, 2, 2, alpha=0.1)
        assert interval is not None
        point, lower, upper = interval
        assert lower < point < upper
        held += lower <= Fraction(1, 2) <= upper
    assert held / runs > 0.87
    assert share_interval([[1, 1]] * 9, 0, 1) is None
    assert share_interval([[1, 3]] * 20, 0, 1) == (Fraction(1, 4),) * 3
