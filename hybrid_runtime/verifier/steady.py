"""Warm-up and drift: from where on a series is steady, and whether judged data moved while it was taken.

    first half     second half
    . . . . . . . | . . . . . .     a drift is the slope of a fitted line that noise does not explain; its size is what
    \\_____________|____________/     the line gains between the middles of the halves ("change")

INCONCLUSIVE("no_steady_state") is due (`decide` and `decide_ratio` apply it) where some column drifts by the test below
*and* the figure lies on the other side of its limit once every drifting column is moved by its change, onward or back.
So a share that moves from 33.1 to 33.2 % stops no claim that it cannot turn, and two devices that swap shares do not
hide behind their equal totals. Columns are a device's share of the total (balance), a device's busy share of the window
(utilisation), or the log-ratio of paired blocks (speed): what slows a whole step, or both sides of a pair, alike moves
none of them.

The slope is tested twice, each at half the level, because either noise estimate is blind for one kind of drift: what is
left beside the line (good for lines; a sudden step leaves a wobble there), and the differences of neighbours without
the largest (good for steps). Both are batched and corrected for autocorrelation as in `statistics`, so that a
correlated wobble is not called a drift. Integers in; exact up to the tests' last quotient.

Sources: MSER-5: White 1997 and White, Cobb and Spratt 2000, with the search limited to the first half as in Hoad,
Robinson and Davies 2008. Slope test: any text on linear regression; noise from differences: von Neumann 1941.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from operator import mul
from typing import NamedTuple

from hybrid_runtime.verifier.statistics import (
    MIN_BATCHES,
    Rows,
    batch_sums,
    cautious_correlation,
    column_residuals,
    independent_batches,
    lag1_autocorrelation,
    residuals_over_last,
    student_quantile,
    variance_widening,
    with_margin,
)

DRIFT_ALPHA = 0.003  # so that steady series, correlated ones too, are called drifting in fewer than 1 % of cases
MSER_BATCH = 5


def mser5(series: Sequence[int]) -> int:
    """How many leading values to leave out, in fives, so that the mean of the others has the smallest standard error.

    Searched in the first half, the smallest of equals; 0 for fewer than four batches of five. A result near the half
    means that the series did not settle.
    """
    whole = len(series) - len(series) % MSER_BATCH  # the values after the last whole batch do not count
    sums = [sum(series[start : start + MSER_BATCH]) for start in range(0, whole, MSER_BATCH)]
    if len(sums) < 4:
        return 0
    best: tuple[Fraction, int] | None = None
    total = squares = 0
    for start in range(len(sums) - 1, -1, -1):
        count = len(sums) - start
        total, squares = total + sums[start], squares + sums[start] ** 2
        error = Fraction(count * squares - total**2, count**3)
        if 2 * start <= len(sums) and (best is None or error <= best[0]):
            best = error, start
    return best[1] * MSER_BATCH if best else 0


def steady_from(series: Sequence[int]) -> int | None:
    """Index of the first value after warm-up (MSER-5); None if what is left still drifts, or is too short to tell.

    Args:
        series: one integer per step, e.g. step windows in ns.
    """
    start = mser5(series)
    rest = series[start:]
    return None if len(rest) < MIN_BATCHES or drifting(rest) else start


def drifting(series: Sequence[int], length: int = 1, alpha: float = DRIFT_ALPHA) -> bool:
    """Whether the level of a series of positive integers moves; False where fewer than MIN_BATCHES batches say nothing.

    Args:
        length: smallest number of consecutive values averaged into a sample.
    """
    return any(_drifts([[value, 1] for value in series], length, residuals_over_last, alpha))


def share_drifts(steps: Rows, length: int, alpha: float = DRIFT_ALPHA) -> list[Fraction]:
    """Per device, by how much its share of the total changed between the halves; 0 where noise explains it.

    Args:
        steps: steps[step][device], integers.
        length: smallest number of consecutive steps in a batch.
        alpha: how often, at most, any device of a steady side is said to drift.
    """
    whole = sum(map(sum, steps))
    return [Fraction(change, whole**2) for change in _drifts(steps, length, column_residuals, alpha)]


def busy_drifts(steps: Rows, length: int, alpha: float = DRIFT_ALPHA) -> list[Fraction]:
    """Per device, by how much its share of the window changed between the halves; steps[step] = (busy..., window)."""
    whole = sum(row[-1] for row in steps)
    return [Fraction(change, whole**2) for change in _drifts(steps, length, residuals_over_last, alpha)]


def level_drift(values: Sequence[int], alpha: float = DRIFT_ALPHA) -> Fraction:
    """By how much the level of single samples, e.g. scaled log-ratios of block pairs, changed between the halves."""
    count, total = len(values), sum(values)
    residuals = [value * count - total for value in values]
    line = fit_line(residuals)
    found = any(_is_significant(line, noise, alpha / 2) for noise in (beside_line(residuals), of_neighbours(residuals)))
    return line.change / count if found else Fraction()


def _drifts(steps: Rows, length: int, residuals: Callable[[Rows], list[list[int]]], alpha: float) -> list[Fraction]:
    """Significant changes of the residuals of a claim's ratios, in units of 1 / denominator**2 for the whole."""
    changes: list[list[Fraction]] = []
    for noise_of, correlation in ((beside_line, _beside_line_correlation), (of_neighbours, neighbour_correlation)):
        batches = independent_batches(steps, length, residuals, correlation)
        series = batches.residuals if batches.enough else []
        lines = [fit_line(one) for one in series]
        level = alpha / 2 / max(1, len(lines))
        changes.append(
            [
                line.change * len(batches.rows) if _is_significant(line, noise_of(one), level) else Fraction()
                for one, line in zip(series, lines, strict=True)
            ]
        )
    columns = len(residuals(batch_sums(steps, len(steps))))
    return [max(found, key=abs, default=Fraction()) for found in zip(*changes)] or [Fraction()] * columns


class Line(NamedTuple):
    """A least-squares line through residuals that sum to zero.

    Attributes:
        change: what it gains between the middles of the two halves.
        rest: the series less the line, times `scale`.
        signal: sum of squares that the line explains, times `scale`.
        scale: an integer that keeps the others whole.
    """

    change: Fraction
    rest: list[int]
    signal: int
    scale: int


def fit_line(residuals: Sequence[int]) -> Line:
    """The line through equally spaced residuals that sum to zero, in integers."""
    count = len(residuals)
    places = range(1 - count, count, 2)  # centred; neighbours are 2 apart
    scale = count * (count**2 - 1) // 3
    slope = sum(map(mul, places, residuals))
    rest = [value * scale - slope * place for place, value in zip(places, residuals, strict=True)]
    return Line(Fraction(count * slope, scale) if scale else Fraction(), rest, slope**2, scale)


class Noise(NamedTuple):
    """Variance of a series without its drift, as a mean over many samples sees it, and how well it is known."""

    variance: Fraction
    freedom: float


def beside_line(residuals: Sequence[int]) -> Noise:
    """Noise from what a fitted line leaves."""
    count, line = len(residuals), fit_line(residuals)
    if count < 5:
        return Noise(Fraction(), 0)
    widening = variance_widening(cautious_correlation(line.rest, fitted=2))
    variance = Fraction(sum(map(mul, line.rest, line.rest)), line.scale**2 * (count - 2))
    return Noise(variance * Fraction(widening), max(2.0, count / widening - 2))


def of_neighbours(residuals: Sequence[int]) -> Noise:
    """Noise from differences of neighbours; with correlation r their variance is 2 (1 - r) of the samples'."""
    count = len(residuals)
    if count < 5:
        return Noise(Fraction(), 0)
    differences = _differences(residuals)
    kept = count - 2
    correlation = with_margin(neighbour_correlation([residuals]), count)
    widening = variance_widening(correlation)
    squares = Fraction(sum(map(mul, differences, differences)), kept**3)
    freedom = max(2.0, 2 * count / widening / 3 - 1)  # differences are worth two thirds of as many free samples
    return Noise(squares / Fraction(2 * (1 - correlation)) * Fraction(widening), freedom)


def neighbour_correlation(series: Sequence[Sequence[int]]) -> float:
    """Lag-1 autocorrelation of series, pooled, from their differences: slow drifts and one sudden step do not show."""
    rows = [_differences(one) for one in series]
    squares = sum(sum(map(mul, row, row)) for row in rows)
    return 1 + 2 * sum(sum(map(mul, row, row[1:])) for row in rows) / squares if squares else 0.0


def _differences(series: Sequence[int]) -> list[int]:
    """Differences of neighbours less their mean, times their number; the one farthest from the others becomes 0."""
    found = [after - before for before, after in pairwise(series)]
    if len(found) < 2:
        return [0] * len(found)
    total, kept = sum(found), len(found) - 1
    farthest = max(range(len(found)), key=lambda place: abs(found[place] * len(found) - total))
    total -= found[farthest]
    return [0 if place == farthest else value * kept - total for place, value in enumerate(found)]


def _beside_line_correlation(series: Sequence[Sequence[int]]) -> float:
    return lag1_autocorrelation([fit_line(one).rest for one in series])


def _is_significant(line: Line, noise: Noise, alpha: float) -> bool:
    """Student's t of a slope, two-sided; a line without any noise is one."""
    if len(line.rest) < 5 or not line.signal:
        return False
    if not noise.variance:
        return True
    return math.sqrt(line.signal / (line.scale * noise.variance)) > student_quantile(1 - alpha / 2, noise.freedom)
