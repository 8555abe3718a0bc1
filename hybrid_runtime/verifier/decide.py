"""The decision rules: numbers in, PASS / FAIL / INCONCLUSIVE out. Thresholds are inclusive and nothing is rounded.

         lower bound          point          upper bound
    ----------[=================|=================]----------        delta right of ]   PASS
                                                                     delta left of [    FAIL
                                                                     delta inside       INCONCLUSIVE

The two bounds are one-sided and use different quantiles: a PASS must hold for every pair (intersection-union test, no
correction: Berger & Hsu; Schuirmann), a FAIL needs one pair, so its level is divided by the number of pairs. Data
without spread has bounds equal to the point, and every rule becomes an exact comparison of fractions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations

from hybrid_runtime.verdict import Outcome, Reason
from hybrid_runtime.verifier.statistics import (
    ALPHA,
    Ratio,
    Rows,
    independent_batches,
    ratio_of_totals,
    student_quantile,
)

MIN_BLOCK_PAIRS = 5


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule found.

    Attributes:
        point, lower, upper: the figure as a fraction of 1; PASS looks at one bound and FAIL at the other.
        worst: columns that set the figure: (largest, smallest) for a range, (least busy,) for a utilisation.
        samples: batches or block pairs.
        steps_per_batch: consecutive steps in one batch; 0 where the data is not batched.
        half_width: what the resolution gate looks at; 0 for exact data.
        note: a sentence that explains an INCONCLUSIVE, or warns; may be empty.
    """

    outcome: Outcome
    reason: Reason | None
    point: Fraction
    lower: Fraction
    upper: Fraction
    worst: tuple[int, ...] = ()
    samples: int = 1
    steps_per_batch: int = 0
    half_width: Fraction = Fraction()
    note: str = ""

    def because(self, reason: Reason, note: str) -> Decision:
        """The same figures, decided by nothing."""
        return replace(self, outcome=Outcome.INCONCLUSIVE, reason=reason, note=note)

    def mapped(self, decreasing: Callable[[Fraction], Fraction]) -> Decision:
        """The same decision, its figures put through a decreasing function, so that the bounds change places."""
        lower, upper = decreasing(self.upper), decreasing(self.lower)
        return replace(self, point=decreasing(self.point), lower=lower, upper=upper)


NO_SPREAD = "no spread at all between noisy samples: suspicious"


def decide_exact_range(amounts: Sequence[int], delta: Fraction) -> Decision:
    """max - min of the exact shares of integers (bytes, FLOPs) against `delta`, inclusive. The sum must be positive."""
    largest, smallest = max(amounts), min(amounts)
    point = Fraction(largest - smallest, sum(amounts))
    outcome = Outcome.PASS if point <= delta else Outcome.FAIL
    return Decision(outcome, None, point, point, point, (amounts.index(largest), amounts.index(smallest)))


def decide_repeated_range(repeats: Rows, delta: Fraction) -> Decision:
    """`decide_exact_range` for a quantity that should repeat exactly, given per repeat and device.

    Repeats that differ are compared as an interval, from the smallest to the largest range seen; INCONCLUSIVE
    ("repeat_differs") if that straddles `delta`, and a single observation proves no repeat.
    """
    largest = [max(column) for column in zip(*repeats, strict=True)]
    shown = replace(decide_exact_range(largest, delta), samples=len(repeats))
    if len(repeats) < 2:
        return shown.because("too_few_batches", "was observed once; two identical observations are needed")
    ranges = [decide_exact_range(row, delta).point for row in repeats]
    lower, upper = min(ranges), max(ranges)
    if all(tuple(row) == tuple(repeats[0]) for row in repeats):
        return shown
    shown = replace(shown, lower=min(lower, shown.point), upper=max(upper, shown.point))
    if shown.lower <= delta < shown.upper:
        return shown.because("repeat_differs", "the observations differ between repeats and straddle the limit")
    return replace(shown, note="the observations differ between repeats, all on the same side of the limit")


def range_residuals(rows: Rows) -> list[list[int]]:
    """Residuals of every column's share of the total."""
    totals = [sum(row) for row in rows]
    return [ratio_of_totals(column, totals).residuals for column in zip(*rows, strict=True)]


def decide_range(steps: Rows, delta: Fraction, batch_steps: int, *, trusted_to: Fraction = Fraction()) -> Decision:
    """Whether no two devices' shares differ by more than `delta`, from noisy integers steps[step][device].

    Args:
        delta: limit as a share (1 pp is 1/100); equality passes.
        batch_steps: smallest number of consecutive steps averaged into a sample.
        trusted_to: systematic error of the instrument as a share. A smaller limit can only fail, and only by a gap
            larger than this error.
    """
    batches = independent_batches(steps, batch_steps, range_residuals)
    decision = _range_of_batches(batches.rows, delta)
    decision = replace(decision, steps_per_batch=batches.steps_per_batch)
    if not batches.enough:
        note = (
            f"{len(batches.rows)} independent batches of {batches.steps_per_batch} steps; at least "
            f"{batches.steps_needed} measured steps are needed, {len(steps)} were made"
        )
        return decision.because("too_few_batches", note)
    return _gated(decision, delta, trusted_to, len(steps))


def _range_of_batches(rows: Rows, delta: Fraction) -> Decision:
    count, devices = len(rows), len(rows[0])
    for_pass = student_quantile(1 - ALPHA, count - 1) if count > 1 else 0.0
    for_fail = student_quantile(1 - ALPHA / (devices * (devices - 1)), count - 1) if count > 1 else 0.0
    totals = [sum(row) for row in rows]
    gaps: dict[tuple[int, int], Ratio] = {
        (i, j): ratio_of_totals([row[i] - row[j] for row in rows], totals) for i, j in permutations(range(devices), 2)
    }
    worst = max(gaps, key=lambda pair: gaps[pair].point)
    upper = max(gap.point + Fraction(for_pass * gap.error) for gap in gaps.values())
    lower = max(gap.point - Fraction(for_fail * gap.error) for gap in gaps.values())
    half_width = max(Fraction(for_pass * gap.error) for gap in gaps.values())
    outcome = Outcome.PASS if upper <= delta else Outcome.FAIL if lower > delta else Outcome.INCONCLUSIVE
    return Decision(
        outcome,
        "interval_straddles_threshold" if outcome is Outcome.INCONCLUSIVE else None,
        gaps[worst].point,
        lower,
        upper,
        worst,
        count,
        half_width=half_width,
        note="" if half_width else NO_SPREAD,
    )


def _gated(decision: Decision, delta: Fraction, trusted_to: Fraction, steps: int) -> Decision:
    """The resolution gate: half-width at most delta / 4. A gap beyond doubt needs no fine resolution to fail."""
    if decision.lower > max(2 * delta, trusted_to):
        return decision
    if delta < trusted_to:
        note = f"this clock is trusted to {_pp(trusted_to)} only, the limit is {_pp(delta)}"
        return decision.because("resolution", note)
    if decision.half_width > delta / 4:
        note = f"half-width {_pp(decision.half_width)} is above a quarter of the limit"
        if delta:
            note += f"; about {math.ceil(steps * (4 * decision.half_width / delta) ** 2)} measured steps are needed"
        return decision.because("resolution", note)
    return decision


def _pp(share: Fraction) -> str:
    return f"{float(share * 100):.3g} pp"


def decide_floor(steps: Rows, theta: Fraction, batch_steps: int) -> Decision:
    """Whether every device is busy at least `theta` of the window; steps[step] = (busy of each device..., window).

    PASS iff every device's lower bound (at level alpha) reaches theta; FAIL iff some device's upper bound (at alpha/N)
    stays below. The figure shown is the least busy device's.
    """
    batches = independent_batches(steps, batch_steps, _floor_residuals)
    rows, devices = batches.rows, len(batches.rows[0]) - 1
    freedom = len(rows) - 1
    for_pass = student_quantile(1 - ALPHA, freedom) if freedom else 0.0
    for_fail = student_quantile(1 - ALPHA / devices, freedom) if freedom else 0.0
    *busy, window = map(list, zip(*rows, strict=True))
    ratios = [ratio_of_totals(column, window) for column in busy]
    lower = min(ratio.point - Fraction(for_pass * ratio.error) for ratio in ratios)
    upper = min(ratio.point + Fraction(for_fail * ratio.error) for ratio in ratios)
    outcome = Outcome.PASS if lower >= theta else Outcome.FAIL if upper < theta else Outcome.INCONCLUSIVE
    worst = min(range(devices), key=lambda device: ratios[device].point)
    decision = Decision(
        outcome,
        "interval_straddles_threshold" if outcome is Outcome.INCONCLUSIVE else None,
        ratios[worst].point,
        lower,
        upper,
        (worst,),
        len(rows),
        batches.steps_per_batch,
        note="" if any(ratio.error for ratio in ratios) else NO_SPREAD,
    )
    if not batches.enough:
        note = f"at least {batches.steps_needed} measured steps are needed, {len(steps)} were made"
        return decision.because("too_few_batches", note)
    return decision


def _floor_residuals(rows: Rows) -> list[list[int]]:
    *busy, window = zip(*rows, strict=True)
    return [ratio_of_totals(column, window).residuals for column in busy]


def decide_ratio(ratios: Sequence[Fraction], limit: Fraction) -> Decision:
    """Whether candidate / baseline (of times, paired by block) is at most `limit`, by Student's t on the log-ratios.

    The figure is the geometric mean of the ratios. Equal ratios are compared exactly.
    """
    pairs = len(ratios)
    if all(ratio == ratios[0] for ratio in ratios):
        point = lower = upper = ratios[0]
        note = NO_SPREAD
    else:
        logs = [math.log(ratio) for ratio in ratios]
        mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(pairs)
        reach = student_quantile(1 - ALPHA, pairs - 1) * error
        point, lower, upper = (Fraction(math.exp(value)) for value in (mean, mean - reach, mean + reach))
        note = ""
    outcome = Outcome.PASS if upper <= limit else Outcome.FAIL if lower > limit else Outcome.INCONCLUSIVE
    reason: Reason | None = "interval_straddles_threshold" if outcome is Outcome.INCONCLUSIVE else None
    decision = Decision(outcome, reason, point, lower, upper, samples=pairs, note=note)
    if pairs < MIN_BLOCK_PAIRS:
        note = f"{pairs} block pairs, at least {MIN_BLOCK_PAIRS} are needed"
        return decision.because("too_few_batches", note)
    return decision
