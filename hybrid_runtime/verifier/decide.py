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

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

from hybrid_runtime.verdict import Outcome, Reason
from hybrid_runtime.verifier.decision import NO_SPREAD, Decision, more_for, shrink_to, shrink_to_exclude
from hybrid_runtime.verifier.statistics import (
    ALPHA,
    Batches,
    Rows,
    column_residuals,
    corrected_error,
    independent_batches,
    residuals_over_last,
    standard_error,
)
from hybrid_runtime.verifier.steady import busy_drifts, share_drifts


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


def decide_range(
    steps: Rows, delta: Fraction, batch_steps: int, *, trusted_to: Fraction = Fraction(), alpha: float = ALPHA
) -> Decision:
    """Whether no two devices' shares differ by more than `delta`, from noisy integers steps[step][device].

    Args:
        delta: limit as a share (1 pp is 1/100); equality passes.
        batch_steps: smallest number of consecutive steps averaged into a sample.
        trusted_to: systematic error of the instrument as a share. A smaller limit can only fail, and only by a gap
            larger than this error.
        alpha: how often, at most, a truth at the limit may pass, and may fail; what a look may spend of the budget.
    """
    batches = independent_batches(steps, batch_steps, column_residuals)
    decision = _range_of_batches(batches, delta, alpha)
    drifts = share_drifts(steps, batch_steps)
    if any(drifts) and _range_may_turn(steps, drifts, delta):
        note = f"a device's share changed by {_pp(max(map(abs, drifts)))} between the halves of the measured steps"
        return decision.because("no_steady_state", note)
    shrink = _range_shrink(decision, delta, trusted_to)
    if not batches.enough:
        return _too_few(decision, batches, len(steps), shrink)
    return _gated(decision, delta, trusted_to, more_for(shrink, len(steps)))


def _range_of_batches(batches: Batches, delta: Fraction, alpha: float) -> Decision:
    """The bounds over all ordered pairs of devices, each with the error of its own difference of shares."""
    rows, residuals = batches.rows, batches.residuals
    devices, total = len(residuals), sum(map(sum, rows))
    amounts = [sum(column) for column in zip(*rows, strict=True)]
    bounds: list[tuple[Fraction, Fraction, Fraction]] = []  # |gap|, reach of the upper bound, reach of the lower one
    for i, j in combinations(range(devices), 2):
        between = [a - b for a, b in zip(residuals[i], residuals[j], strict=True)]
        error = corrected_error(standard_error(between, total), between)
        fail = error.reach(alpha / (devices * (devices - 1)))
        bounds.append((Fraction(abs(amounts[i] - amounts[j]), total), error.reach(alpha), fail))
    upper = max(gap + reach for gap, reach, _ in bounds)
    lower = max(gap - reach for gap, _, reach in bounds)
    largest, smallest = max(amounts), min(amounts)
    half_width = max(reach for _, reach, _ in bounds)
    outcome = Outcome.PASS if upper <= delta else Outcome.FAIL if lower > delta else Outcome.INCONCLUSIVE
    return Decision(
        outcome,
        _straddles(outcome),
        Fraction(largest - smallest, total),
        lower,
        upper,
        (amounts.index(largest), amounts.index(smallest)),
        len(rows),
        batches.steps_per_batch,
        half_width,
        "" if half_width else NO_SPREAD,
        alpha=alpha,
    )


def _straddles(outcome: Outcome) -> Reason | None:
    return "interval_straddles_threshold" if outcome is Outcome.INCONCLUSIVE else None


def _too_few(decision: Decision, batches: Batches, steps: int, shrink: Fraction) -> Decision:
    """INCONCLUSIVE for want of batches; the interval's own need of steps is not forgotten."""
    wanted = batches.steps_needed
    note = (
        f"{len(batches.rows)} independent batches of {batches.steps_per_batch} steps; at least {wanted} measured steps "
        f"are needed, {steps} were made"
    )
    more = more_for(shrink, steps)
    return decision.because("too_few_batches", note, more and max(wanted - steps, more))


def _range_may_turn(steps: Rows, drifts: Sequence[Fraction], delta: Fraction) -> bool:
    """Whether the range is on different sides of `delta` now, and with the drifting shares moved onward or back."""
    amounts = [sum(column) for column in zip(*steps, strict=True)]
    shares = [Fraction(amount, sum(amounts)) for amount in amounts]
    moved = [[share + way * drift for share, drift in zip(shares, drifts, strict=True)] for way in (-1, 0, 1)]
    return len({max(row) - min(row) <= delta for row in moved}) > 1


def _gated(decision: Decision, delta: Fraction, trusted_to: Fraction, more: int | None) -> Decision:
    """The resolution gate: half-width at most a quarter of the limit.

    A failure is resolved if it would also fail at some looser limit that the gate lets through: so no figure that fails
    at one limit is undecided at a stricter one. A gap beyond twice the limit needs no fine resolution.
    """
    if decision.lower > max(delta, trusted_to):
        if decision.lower > 2 * delta or 4 * decision.half_width < decision.lower:
            return decision
    elif delta < trusted_to:
        note = f"this clock is trusted to {_pp(trusted_to)} only, the limit is {_pp(delta)}"
        return decision.because("resolution", note, more)
    if decision.half_width > delta / 4:
        note = f"half-width {_pp(decision.half_width)} is above a quarter of the limit"
        return decision.because("resolution", note, more)
    if decision.outcome is Outcome.INCONCLUSIVE:
        return decision.because("interval_straddles_threshold", decision.note, more)
    return decision


def _range_shrink(decision: Decision, delta: Fraction, trusted_to: Fraction) -> Fraction:
    """To which part of themselves the errors must shrink before `_gated` decides: 0 if they cannot."""
    point, down, width = decision.point, decision.point - decision.lower, 4 * decision.half_width
    if not width:
        return Fraction(delta >= trusted_to or point > max(delta, trusted_to))
    ways = [Fraction()]
    if point < delta and delta >= trusted_to:
        ways.append(min(shrink_to(delta - point, decision.upper - point), delta / width))
    if point > max(2 * delta, trusted_to):
        ways.append(shrink_to(point - max(2 * delta, trusted_to), down))
    if point > max(delta, trusted_to):
        ways.append(min(shrink_to(point - max(delta, trusted_to), down), point / (width + down)))
    return max(ways)


def _pp(share: Fraction) -> str:
    return f"{float(share * 100):.3g} pp"


def decide_floor(steps: Rows, theta: Fraction, batch_steps: int, *, alpha: float = ALPHA) -> Decision:
    """Whether every device is busy at least `theta` of the window; steps[step] = (busy of each device..., window).

    PASS iff every device's lower bound (at level alpha) reaches theta; FAIL iff some device's upper bound (at alpha/N)
    stays below. The figure shown is the least busy device's.
    """
    batches = independent_batches(steps, batch_steps, residuals_over_last)
    decision = _floor_of_batches(batches, theta, alpha)
    drifts = busy_drifts(steps, batch_steps)
    if any(drifts) and _floor_may_turn(steps, drifts, theta):
        note = f"a device's busy share changed by {_pp(max(map(abs, drifts)))} between the halves of the measured steps"
        return decision.because("no_steady_state", note)
    shrink = shrink_to_exclude(theta, decision.point, decision.lower, decision.upper)
    if not batches.enough:
        return _too_few(decision, batches, len(steps), shrink)
    if decision.outcome is Outcome.INCONCLUSIVE:
        return decision.because("interval_straddles_threshold", decision.note, more_for(shrink, len(steps)))
    return decision


def _floor_of_batches(batches: Batches, theta: Fraction, alpha: float) -> Decision:
    *busy, window = map(list, zip(*batches.rows, strict=True))
    points = [Fraction(sum(column), sum(window)) for column in busy]
    errors = [corrected_error(standard_error(series, sum(window)), series) for series in batches.residuals]
    lower = min(point - error.reach(alpha) for point, error in zip(points, errors, strict=True))
    upper = min(point + error.reach(alpha / len(busy)) for point, error in zip(points, errors, strict=True))
    outcome = Outcome.PASS if lower >= theta else Outcome.FAIL if upper < theta else Outcome.INCONCLUSIVE
    worst = points.index(min(points))
    return Decision(
        outcome,
        _straddles(outcome),
        points[worst],
        lower,
        upper,
        (worst,),
        len(batches.rows),
        batches.steps_per_batch,
        note="" if any(error.value for error in errors) else NO_SPREAD,
        alpha=alpha,
    )


def _floor_may_turn(steps: Rows, drifts: Sequence[Fraction], theta: Fraction) -> bool:
    """Whether the least busy device is on different sides of `theta` now, and with the drifts moved onward or back."""
    *busy, window = (sum(column) for column in zip(*steps, strict=True))
    shares = [Fraction(amount, window) for amount in busy]
    moved = [[share + way * drift for share, drift in zip(shares, drifts, strict=True)] for way in (-1, 0, 1)]
    return len({min(row) >= theta for row in moved}) > 1
