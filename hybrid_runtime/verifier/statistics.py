"""Numbers with spread: near-equal batches of consecutive steps, their autocorrelation, ratios with a standard error.

Sources: batch means and the ratio estimator with its delta-method residual (any text on simulation output analysis);
Student's t from scipy; for correlation that batches keep, the bias of its estimate (Marriott and Pope 1954, Kendall
1954), the widening (1 + r) / (1 - r) of a variance and the effective number of samples (Bayley and Hammersley 1946;
applied to batch means by Tafazzoli and Wilson 2011, "Skart"). Samples are integers, so samples without spread give an
error of exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from operator import mul
from typing import NamedTuple

Rows = Sequence[
    Sequence[int]
]  # one row per step or batch; the columns are a claim's own (devices, or devices + window)

ALPHA = 0.05
MIN_BATCHES = 10  # below this, Student's t on batch means is not believed
MAX_AUTOCORRELATION = 0.2  # batches are lengthened while they are correlated more than this
MOST_CORRECTED = 0.9  # more than this a short run cannot tell from a drift
CAUTION = 0.5  # standard errors added to an estimated autocorrelation: too small a one errs towards PASS and FAIL


def student_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t distribution with `freedom` degrees of freedom, which need not be whole."""
    from scipy.special import stdtrit  # scipy takes a third of a second to import; `check` must not pay for it

    return float(stdtrit(freedom, probability))


def batch_sums(rows: Rows, length: int) -> list[tuple[int, ...]]:
    """Sums of consecutive rows, `length` or a little more in each batch; every row enters exactly one batch."""
    if length == 1:
        return [tuple(row) for row in rows]
    count = max(1, len(rows) // length)
    edges = [index * len(rows) // count for index in range(count + 1)]
    return [tuple(map(sum, zip(*rows[start:stop], strict=True))) for start, stop in pairwise(edges)]


class Ratio(NamedTuple):
    """A ratio of totals. `residuals` sum to zero; in units of 1/denominator**2 they say how far each batch is off."""

    point: Fraction
    error: float
    residuals: list[int]


def ratio_of_totals(numerators: Sequence[int], denominators: Sequence[int]) -> Ratio:
    """sum(numerators) / sum(denominators) with its standard error over batches; the error of a single batch is 0."""
    top, bottom = sum(numerators), sum(denominators)
    residuals = [a * bottom - top * b for a, b in zip(numerators, denominators, strict=True)]
    return Ratio(Fraction(top, bottom), standard_error(residuals, bottom), residuals)


def standard_error(residuals: Sequence[int], denominator: int) -> float:
    """Of a ratio of totals (or of a difference of such ratios) with this denominator, from its residuals."""
    count, spread = len(residuals), sum(map(mul, residuals, residuals))
    return math.sqrt(Fraction(spread * count, denominator**4 * (count - 1))) if spread else 0.0


def lag1_autocorrelation(series: Sequence[Sequence[int]]) -> float:
    """Lag-1 autocorrelation of residual series that each sum to zero, pooled over the series; 0 without spread."""
    products = sum(sum(map(mul, one, one[1:])) for one in series)
    squares = sum(sum(map(mul, one, one)) for one in series)
    return products / squares if squares else 0.0


def cautious_correlation(residuals: Sequence[int], fitted: int = 1) -> float:
    """What lag-1 autocorrelation a residual series may have: the estimate without its bias, or 0, and a margin on top.

    Args:
        fitted: parameters that were subtracted: 1 for a mean, 2 for a line. Each lowers the estimate by about 1/n.
    """
    count = len(residuals)
    if count < 5 or not any(residuals):
        return 0.0
    return with_margin((count * lag1_autocorrelation([residuals]) + fitted) / (count - 4), count)


def with_margin(correlation: float, count: int) -> float:
    """An estimated autocorrelation of `count` samples, or 0, and CAUTION standard errors, at most MOST_CORRECTED."""
    return min(max(correlation, 0.0) + CAUTION / math.sqrt(count), MOST_CORRECTED)


def variance_widening(correlation: float) -> float:
    """How much autocorrelation enlarges the variance of a mean, and lowers the number of samples that it rests on."""
    return (1 + correlation) / (1 - correlation)


class Error(NamedTuple):
    """A standard error and the degrees of freedom that it is known with."""

    value: float
    freedom: float

    def reach(self, alpha: float) -> Fraction:
        """How far a one-sided bound of level `alpha` lies from the point; 0 without spread."""
        return Fraction(student_quantile(1 - alpha, self.freedom) * self.value) if self.value else Fraction()


def corrected_error(error: float, residuals: Sequence[int]) -> Error:
    """A standard error over independent samples, widened by the autocorrelation that the samples may still have.

    The variance grows by (1 + r) / (1 - r) and the samples count for as many fewer; at least two degrees are left.
    """
    widening = variance_widening(cautious_correlation(residuals))
    return Error(error * math.sqrt(widening), max(2.0, len(residuals) / widening - 1))


@dataclass(frozen=True, slots=True)
class Batches:
    """Batch sums that may be treated as nearly independent samples.

    Attributes:
        steps_per_batch: length that was needed.
        residuals: the residual series of the claim's ratios over these batches.
    """

    rows: list[tuple[int, ...]]
    steps_per_batch: int
    residuals: list[list[int]]

    @property
    def enough(self) -> bool:
        """At least MIN_BATCHES of them are left."""
        return len(self.rows) >= MIN_BATCHES

    @property
    def steps_needed(self) -> int:
        """How many measured steps would give MIN_BATCHES batches of this length."""
        return MIN_BATCHES * self.steps_per_batch


def independent_batches(
    steps: Rows,
    length: int,
    residuals: Callable[[Rows], list[list[int]]],
    correlation: Callable[[Sequence[Sequence[int]]], float] = lag1_autocorrelation,
) -> Batches:
    """Batches of at least `length` steps, doubled while neighbours are correlated and MIN_BATCHES would remain.

    Args:
        residuals: the residual series of a claim's own ratios, computed from batch sums.
        correlation: how the autocorrelation of such series is estimated.
    """
    while True:
        rows = batch_sums(steps, length)
        series = residuals(rows)
        if len(steps) // (2 * length) < MIN_BATCHES or correlation(series) < MAX_AUTOCORRELATION:
            return Batches(rows, length, series)
        length *= 2


def column_residuals(rows: Rows) -> list[list[int]]:
    """Residuals of every column's share of the row totals."""
    totals = [sum(row) for row in rows]
    return [ratio_of_totals(column, totals).residuals for column in zip(*rows, strict=True)]


def residuals_over_last(rows: Rows) -> list[list[int]]:
    """Residuals of every column's ratio to the last one (a step window, or a count of steps)."""
    *columns, last = zip(*rows, strict=True)
    return [ratio_of_totals(column, last).residuals for column in columns]


def share_interval(
    steps: Rows, device: int, batch_steps: int, alpha: float = ALPHA
) -> tuple[Fraction, Fraction, Fraction] | None:
    """(point, lower, upper) of a device's share of the totals, two-sided at 1 - alpha; for display, no rule uses it.

    None where there are too few independent batches to know a spread. Rows are steps[step][device].
    """
    batches = independent_batches(steps, batch_steps, column_residuals)
    if not batches.enough:
        return None
    total, residuals = sum(map(sum, batches.rows)), batches.residuals[device]
    point = Fraction(sum(row[device] for row in batches.rows), total)
    reach = corrected_error(standard_error(residuals, total), residuals).reach(alpha / 2)
    return point, point - reach, point + reach
