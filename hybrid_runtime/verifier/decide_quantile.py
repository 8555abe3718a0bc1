"""The rule for latencies: is a quantile of the requests' latencies at most a limit?

    all latencies, sorted      x  x  x  x  x  x  x  X  x  x
                                        [        ^        ]
                                  lower        point        upper      PASS iff upper <= limit, FAIL iff lower > limit

The bounds are order statistics: those at the places q - reach and q + reach of all n latencies (Woodruff 1952, JASA 47,
for samples in clusters). The reach is the larger one of two:

    of steps      requests of one round wait for each other; the share of requests below the point, step by step, has an
                  error of its own, batched and widened for autocorrelation as all figures are (`statistics`)
    of requests   what as many independent requests allow (binomial), so that steps that are alike by chance, or by
                  their plan, prove nothing

A quantile needs ten requests beyond it on either side: 10 / (1 - q) of them, 20 for the median and 1000 for p99. Fewer
decide nothing. A batch is so long that on average a request in it lies beyond the quantile: shorter ones are nearly all
alike, and whether slow rounds follow each other does not show in them. Latencies without spread are compared exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil

from hybrid_runtime.serving.latencies import quantile
from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decision import NO_SPREAD, Decision, more_for, shrink_to, shrink_to_exclude
from hybrid_runtime.verifier.statistics import (
    ALPHA,
    Batches,
    corrected_error,
    independent_batches,
    residuals_over_last,
    standard_error,
)
from hybrid_runtime.verifier.steady import busy_drifts

_BEYOND = 10  # requests that must lie beyond a quantile

Latencies = Sequence[Sequence[Fraction]]  # per step, of its requests


def requests_needed(part: Fraction) -> int:
    """Requests that a quantile needs."""
    return ceil(_BEYOND / min(part, 1 - part))


def quantile_interval(
    steps: Latencies, part: Fraction, batch_steps: int, *, alpha: float = ALPHA, limit: Fraction | None = None
) -> Decision | None:
    """The quantile with a bound of level `alpha` on either side; nothing is decided. None with too few requests.

    Args:
        limit: the share of requests below it may vary more from step to step than the share below the point: the wider
            interval of both is taken.

    Where even the largest latency is no upper bound, because steps vary too much, the reason is "too_few_batches"; the
    figures are then the largest and, for want of a lower bound, 0.
    """
    ordered = sorted(latency for step in steps for latency in step)
    count = len(ordered)
    if count < requests_needed(part):
        return None
    point, batch_steps = quantile(ordered, part), max(batch_steps, _steps_with_one_beyond(steps, part))
    of_places = [_batched(steps, place, batch_steps) for place in (point, limit) if place is not None]
    reach = max(_reach(batches, count, alpha) for batches in of_places)
    batches = max(of_places, key=lambda batches: batches.steps_per_batch)
    first, last = _binomial_places(count, part, alpha)
    first, last = min(first, ceil((part - reach) * count)), max(last, ceil((part + reach) * count))
    decision = Decision(
        Outcome.INCONCLUSIVE,
        None,
        point,
        ordered[first - 1] if first >= 1 else Fraction(),
        ordered[min(last, count) - 1],
        samples=count,
        steps_per_batch=batches.steps_per_batch,
        note="" if ordered[0] < ordered[-1] else NO_SPREAD,
        alpha=alpha,
    )
    if not batches.enough:
        rounds = f"{len(batches.rows)} independent batches of {batches.steps_per_batch}"
        missing = max(1, batches.steps_needed - len(steps))
        return decision.because("too_few_batches", f"{rounds} rounds cannot bound the quantile", missing, "round")
    if last > count:
        more = more_for(shrink_to(1 - part, max(reach, 1 - part)), len(steps))
        return decision.because("too_few_batches", "rounds differ too much to bound the quantile", more, "round")
    return decision


def decide_quantile(
    steps: Latencies, part: Fraction, limit: Fraction, batch_steps: int, *, alpha: float = ALPHA
) -> Decision | None:
    """Whether at least the `part` of all requests has a latency of at most `limit`, which may be reached.

    Args:
        steps: latencies of the requests of every judged step, in the unit of `limit`.
        batch_steps: smallest number of consecutive steps averaged into a sample.
        alpha: how often, at most, a truth at the limit may pass, and may fail.

    Returns:
        None with fewer than `requests_needed` requests.
    """
    decision = quantile_interval(steps, part, batch_steps, alpha=alpha, limit=limit)
    if decision is None:
        return None
    if _may_turn(steps, part, limit, batch_steps):
        return decision.because("no_steady_state", "latencies changed while they were measured")
    if decision.reason is not None:
        return decision
    if decision.upper <= limit:
        return replace(decision, outcome=Outcome.PASS)
    if decision.lower > limit:
        return replace(decision, outcome=Outcome.FAIL)
    shrink = shrink_to_exclude(limit, decision.point, decision.lower, decision.upper)
    return decision.because("interval_straddles_threshold", decision.note, more_for(shrink, len(steps)), "round")


def _steps_with_one_beyond(steps: Latencies, part: Fraction) -> int:
    """In how many steps, on average, a request lies beyond the quantile, on the side where fewer do."""
    return ceil(Fraction(len(steps)) / (sum(map(len, steps)) * min(part, 1 - part)))


def _batched(steps: Latencies, place: Fraction, batch_steps: int) -> Batches:
    """Batches of the share of requests within `place`."""
    return independent_batches(_shares(steps, place), batch_steps, residuals_over_last)


def _reach(batches: Batches, count: int, alpha: float) -> Fraction:
    """How far from itself the true share may lie, as far as steps differ."""
    residuals = batches.residuals[0]
    return corrected_error(standard_error(residuals, count), residuals).reach(alpha)


def _shares(steps: Latencies, limit: Fraction) -> list[tuple[int, int]]:
    """(requests within the limit, requests) of every step."""
    return [(sum(latency <= limit for latency in step), len(step)) for step in steps]


def _may_turn(steps: Latencies, part: Fraction, limit: Fraction, batch_steps: int) -> bool:
    """Whether the share of requests within the limit drifts so that it lies on both sides of `part`."""
    rows = _shares(steps, limit)
    drift = busy_drifts(rows, batch_steps)[0]
    within, count = (sum(column) for column in zip(*rows, strict=True))
    return len({Fraction(within, count) + way * drift >= part for way in (-1, 0, 1)}) > 1


def _binomial_places(count: int, part: Fraction, alpha: float) -> tuple[int, int]:
    """The places of the order statistics that bound a quantile of independent samples from below and from above.

    The i-th smallest exceeds the quantile only if fewer than i samples do not: P(X_(i) > quantile) = P(Bin < i). So the
    last place whose P is at most alpha bounds it from below, the first whose P is at least 1 - alpha from above.
    """
    from scipy.special import bdtr  # scipy takes a third of a second to import; `check` must not pay for it

    def below(place: int) -> float:
        return float(bdtr(place - 1, count, float(part)))

    middle = ceil(count * part)
    first = _last_true(0, middle, lambda place: below(place) <= alpha)
    last = _last_true(middle - 1, count + 1, lambda place: below(place) < 1 - alpha) + 1
    return first, last


def _last_true(true: int, false: int, test: Callable[[int], bool]) -> int:
    """The largest number for which a test holds that holds up to somewhere from `true` on, and not at `false`."""
    while false - true > 1:
        middle = (true + false) // 2
        true, false = (middle, false) if test(middle) else (true, middle)
    return true
