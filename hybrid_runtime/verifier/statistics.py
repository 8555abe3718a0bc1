"""Numbers with spread: near-equal batches of consecutive steps, their autocorrelation, ratios with a standard error.

Sources: batch means and the ratio estimator with its delta-method residual (any text on simulation output analysis);
Student's t from scipy. Samples are integers, so samples without spread give an error of exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

Rows = Sequence[
    Sequence[int]
]  # one row per step or batch; the columns are a claim's own (devices, or devices + window)

ALPHA = 0.05
MIN_BATCHES = 10  # below this, Student's t on batch means is not believed
MAX_AUTOCORRELATION = 0.2


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtrit  # scipy takes a third of a second to import; `check` must not pay for it

    return float(stdtrit(freedom, probability))


def batch_sums(rows: Rows, length: int) -> list[tuple[int, ...]]:
    """Sums of consecutive rows, `length` or a little more in each batch; every row enters exactly one batch."""
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
    count, top, bottom = len(numerators), sum(numerators), sum(denominators)
    residuals = [a * bottom - top * b for a, b in zip(numerators, denominators, strict=True)]
    spread = sum(residual * residual for residual in residuals)
    error = math.sqrt(Fraction(spread * count, bottom**4 * (count - 1))) if spread else 0.0
    return Ratio(Fraction(top, bottom), error, residuals)


def lag1_autocorrelation(series: Sequence[Sequence[int]]) -> float:
    """Lag-1 autocorrelation of residual series that each sum to zero, pooled over the series; 0 without spread."""
    products = sum(a * b for one in series for a, b in pairwise(one))
    squares = sum(a * a for one in series for a in one)
    return products / squares if squares else 0.0


@dataclass(frozen=True, slots=True)
class Batches:
    """Batch sums that may be treated as independent samples.

    Attributes:
        steps_per_batch: length that was needed.
        enough: at least MIN_BATCHES of them are left.
        steps_needed: how many measured steps would give MIN_BATCHES batches of this length.
    """

    rows: list[tuple[int, ...]]
    steps_per_batch: int

    @property
    def enough(self) -> bool:
        return len(self.rows) >= MIN_BATCHES

    @property
    def steps_needed(self) -> int:
        return MIN_BATCHES * self.steps_per_batch


def independent_batches(steps: Rows, length: int, residuals: Callable[[Rows], list[list[int]]]) -> Batches:
    """Batches of at least `length` steps, doubled until neighbours are uncorrelated or too few batches are left.

    Args:
        residuals: the residual series of a claim's own ratios, computed from batch sums.
    """
    while True:
        rows = batch_sums(steps, length)
        if len(rows) < MIN_BATCHES or lag1_autocorrelation(residuals(rows)) < MAX_AUTOCORRELATION:
            return Batches(rows, length)
        length *= 2
