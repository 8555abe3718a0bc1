"""Samples far from the others: flagged and shown with what leaving them out would change; no decision ever drops them.

Source: Tukey 1977, outer fences: three interquartile ranges below the first and above the third quartile.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

FENCE_RANGES = 3


class Flagged(NamedTuple):
    """What a series of integers looks like with and without its outliers, exactly and in its own unit.

    Attributes:
        indexes: places of the outliers in the series, ascending.
        mean, median: of all values.
        mean_without, median_without: of the values within the fences, which are never none.
    """

    indexes: tuple[int, ...]
    mean: Fraction
    median: Fraction
    mean_without: Fraction
    median_without: Fraction


def flag_outliers(series: Sequence[int]) -> Flagged:
    """Outliers of a series, e.g. of step windows in ns. Fewer than four values have no quartiles, so no outliers.

    Raises:
        ValueError: the series is empty.
    """
    if not series:
        raise ValueError("no values, so neither a mean nor outliers; give at least one measured step")
    values = [Fraction(value) for value in series]
    low, high = _fences(values)
    within = [value for value in values if low <= value <= high]
    return Flagged(
        tuple(index for index, value in enumerate(values) if not low <= value <= high),
        statistics.mean(values),
        statistics.median(values),
        statistics.mean(within),
        statistics.median(within),
    )


def _fences(values: Sequence[Fraction]) -> tuple[Fraction, Fraction]:
    if len(values) < 4:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first - FENCE_RANGES * (third - first), third + FENCE_RANGES * (third - first)
