"""Batches, autocorrelation and ratios against hand-made numbers and textbook values."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.verifier.statistics import (
    Rows,
    batch_sums,
    independent_batches,
    lag1_autocorrelation,
    ratio_of_totals,
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
