"""Rules for paired blocks of two sides: is the candidate fast enough, and do two sides agree?

Both look at the geometric mean of the ratios candidate / baseline: Student's t on the log-ratios, widened by what
autocorrelation neighbouring pairs may have. A drift of the machine hits both sides of a pair and is not seen; a drift
of the ratio itself is INCONCLUSIVE("no_steady_state") where it might turn the answer. Equal ratios are compared
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decision import NO_SPREAD, Decision, more_for, shrink_to_exclude
from hybrid_runtime.verifier.statistics import ALPHA, corrected_error, ratio_of_totals
from hybrid_runtime.verifier.steady import level_drift

MIN_BLOCK_PAIRS = 5
LOG_UNIT = 10**15  # log-ratios become integers of this unit, as fine as the floats they come from


def decide_ratio(ratios: Sequence[Fraction], limit: Fraction, *, alpha: float = ALPHA) -> Decision:
    """Whether candidate / baseline (of times, paired by block) is at most `limit`; equality passes.

    Args:
        ratios: one positive ratio per pair, in the order in which the pairs were run.
        alpha: how often, at most, a truth at the limit may pass, and may fail; what a look may spend of the budget.
    """
    decision = _interval(ratios, alpha, alpha)
    outcome = (
        Outcome.PASS if decision.upper <= limit else Outcome.FAIL if decision.lower > limit else Outcome.INCONCLUSIVE
    )
    return _judged(decision, ratios, outcome, [limit])


def decide_equivalence(ratios: Sequence[Fraction], margin: Fraction, *, alpha: float = ALPHA) -> Decision:
    """Whether two sides take the same time but for `margin`: a mean ratio within [1 / (1 + margin), 1 + margin].

    PASS iff the two-sided interval at 1 - alpha lies inside, FAIL iff it lies wholly outside; the ends belong to the
    inside. For A/A tests and for what an observer costs.

    Args:
        ratios: one positive ratio per pair, in the order in which the pairs were run.
        margin: more than 0; 1/100 allows each side to be one percent slower than the other.
    """
    least, most = 1 / (1 + margin), 1 + margin
    decision = _interval(ratios, alpha / 2, alpha)
    if least <= decision.lower and decision.upper <= most:
        outcome = Outcome.PASS
    else:
        outside = decision.lower > most or decision.upper < least
        outcome = Outcome.FAIL if outside else Outcome.INCONCLUSIVE
    return _judged(decision, ratios, outcome, [least, most])


def _interval(ratios: Sequence[Fraction], tail: float, alpha: float) -> Decision:
    """The mean ratio with a bound of level `tail` on either side; nothing is decided yet."""
    pairs, open_ = len(ratios), Outcome.INCONCLUSIVE
    if all(ratio == ratios[0] for ratio in ratios):
        point = ratios[0]
        return Decision(open_, None, point, point, point, samples=pairs, note=NO_SPREAD, alpha=alpha)
    mean = ratio_of_totals(_logs(ratios), [1] * pairs)
    reach = corrected_error(mean.error, mean.residuals).reach(tail)
    point, lower, upper = (_from_log(value) for value in (mean.point, mean.point - reach, mean.point + reach))
    return Decision(open_, None, point, lower, upper, samples=pairs, alpha=alpha)


def _judged(decision: Decision, ratios: Sequence[Fraction], outcome: Outcome, limits: Sequence[Fraction]) -> Decision:
    """The outcome, unless the ratio drifts across a limit, pairs are missing, or the interval holds a limit."""
    if _may_turn(decision.point, ratios, limits):
        note = "the ratio of the sides itself drifts from block to block"
        return decision.because("no_steady_state", note)
    logs = [Fraction(math.log(value)) for value in (decision.point, decision.lower, decision.upper)]
    shrink = min(shrink_to_exclude(Fraction(math.log(limit)), *logs) for limit in limits)
    more, missing = more_for(shrink, len(ratios)), max(0, MIN_BLOCK_PAIRS - len(ratios))
    if missing:
        note = f"{len(ratios)} block pairs, at least {MIN_BLOCK_PAIRS} are needed"
        return decision.because("too_few_batches", note, more and max(more, missing), "block pair")
    if outcome is Outcome.INCONCLUSIVE:
        return decision.because("interval_straddles_threshold", decision.note, more, "block pair")
    return replace(decision, outcome=outcome)


def _may_turn(point: Fraction, ratios: Sequence[Fraction], limits: Sequence[Fraction]) -> bool:
    """Whether a limit lies between the figure now and the figure with the ratio's drift continued or taken back."""
    change = level_drift(_logs(ratios)) / LOG_UNIT
    if not change:
        return False
    places = [Fraction(math.log(point)) + way * change for way in (-1, 0, 1)]
    return any(len({place <= math.log(limit) for place in places}) > 1 for limit in limits)


def _logs(ratios: Sequence[Fraction]) -> list[int]:
    return [round(math.log(ratio) * LOG_UNIT) for ratio in ratios]


def _from_log(value: Fraction) -> Fraction:
    """To twelve digits, fewer than a logarithm of another machine's library may differ in: judged alike everywhere."""
    return Fraction(f"{math.exp(max(-700.0, min(700.0, float(value / LOG_UNIT)))):.12g}")
