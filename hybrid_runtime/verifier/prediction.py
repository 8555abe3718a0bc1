"""Did the plan's prediction come true? plan.json and the records -> `JudgedPrediction`. It decides no claim.

    no prediction ................................. UNJUDGED(no_prediction)
    made for another machine or other requests .... STALE, before anything is compared
    a deciding error beyond its limit ............. OPTIMISTIC (measured worse) or PESSIMISTIC
    wall time is no measurement, too few steps .... UNJUDGED(reason), unless what can be judged is beyond its limit
    else .......................................... PREDICTED

What decides: the step's time and every rank's peak memory; where ranks share cores, the busy time of every rank on its
thread's clock stands in for the step. Errors are compared as fractions: exactly 10 % is predicted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from statistics import median
from typing import get_args

from hybrid_runtime.exact import decimal_text, exact_text
from hybrid_runtime.fingerprint import differences, fingerprint
from hybrid_runtime.predicted import PredictedStep
from hybrid_runtime.records import RankRecords
from hybrid_runtime.verdict_prediction import (
    BudgetRow,
    JudgedPrediction,
    PredictionReason,
    PredictionVerdict,
    Quantity,
    QuantityId,
    RankError,
)
from hybrid_runtime.verifier.metrics import Metrics
from hybrid_runtime.verifier.prediction_quantities import MIN_STEPS, Compared, Pair, compared, has_spans
from hybrid_runtime.verifier.time_budget import COMPONENTS, COMPUTE, Parts, rank_parts
from hybrid_runtime.verifier.trust import Blocker

REST = "rest"


def judge_prediction(metrics: Metrics, blocker: Blocker | None) -> JudgedPrediction:
    """Judges the prediction in the plan of a side against its measured steps.

    Args:
        metrics: of the candidate's steps with spans.
        blocker: why wall-clock time of this run is no measurement, if it is not.
    """
    predicted = metrics.side.plan.predicted
    if predicted is None:
        words = "plan.json holds no prediction: the plan was made from the deployment alone"
        return JudgedPrediction(verdict=PredictionVerdict.UNJUDGED, reason="no_prediction", detail=words)
    others = other_requests(predicted, metrics.side.ranks)
    if stale := [*others, *stale_facts(predicted, metrics.side.ranks)]:
        words = f"predicted for {'other requests' if others else 'another machine or other versions'}: {stale[0]}"
        return JudgedPrediction(
            verdict=PredictionVerdict.STALE, detail=words, source=predicted.source, stale=tuple(stale)
        )
    quantities = [_judged(found) for found in compared(predicted, metrics, blocker)]
    judged_time: QuantityId = "busy" if blocker else "step_time"
    quantities = [one.model_copy(update={"decides": one.id in (judged_time, "peak_memory")}) for one in quantities]
    verdict, reason, detail = _overall(quantities, judged_time, len(metrics.steps), blocker)
    budget = _budget(predicted, metrics, judged_time, quantities)
    return JudgedPrediction(
        verdict=verdict,
        reason=reason,
        detail=detail,
        source=predicted.source,
        quantities=tuple(quantities),
        budget_of=judged_time if budget else "",
        budget=tuple(budget),
    )


def stale_facts(predicted: PredictedStep, ranks: Sequence[RankRecords]) -> list[str]:
    """In what the machine of a prediction differs from the hosts of a run; nothing where it names no machine.

    A fact that only a host's first rank wrote down is looked for there.
    """
    if not predicted.fingerprint:
        return []
    found: dict[str, None] = {}
    for rank in ranks:
        header = rank.header
        if not header.machine and header.host.local_world_size > 1 and header.rank:
            continue
        run = fingerprint(
            header.machine,
            header.versions,
            host=header.host.name,
            device=header.device.name,
            threads_per_rank=header.host.threads_per_rank,
        )
        found |= dict.fromkeys(differences(run, predicted.fingerprint))
    return list(found)


def other_requests(predicted: PredictedStep, ranks: Sequence[RankRecords]) -> list[str]:
    """In what the requests of a prediction differ from those of a run; nothing where either does not say."""
    asked = ranks[0].header.asked
    return differences(asked, predicted.asked) if asked and predicted.asked else []


def _error(pair: Pair) -> Fraction | None:
    """predicted / measured - 1; None of nothing measured."""
    predicted, measured = pair
    return predicted / measured - 1 if measured else None


def _judged(found: Compared) -> Quantity:
    errors = {rank: error for rank, pair in found.pairs.items() if (error := _error(pair)) is not None}
    if errors:
        worst = max(errors, key=lambda rank: (abs(errors[rank]), -(rank or 0)))
        middle: Fraction | None = median(errors.values())
    else:
        worst, middle = next(iter(found.pairs)), None
    predicted, measured = found.pairs[worst]
    interval = found.interval
    return Quantity(
        id=found.id,
        text=found.text,
        unit=found.unit,
        label=found.label,
        method=found.method,
        predicted=round(predicted),
        measured=round(measured),
        error=_percent(errors.get(worst)),
        exact=_exact(errors.get(worst)),
        median_error=_percent(middle),
        worst_rank=worst,
        interval=interval,
        inside=None if interval is None else interval[0] <= measured <= interval[1],
        limit=None if found.limit is None else decimal_text(found.limit * 100),
        verdict=_verdict(errors, found.limit),
        ranks=tuple(_rank_error(pp, pair) for pp, pair in found.pairs.items() if pp is not None),
    )


def _rank_error(pp_rank: int, pair: Pair) -> RankError:
    error = _error(pair)
    return RankError(
        pp_rank=pp_rank,
        predicted=round(pair[0]),
        measured=round(pair[1]),
        error=_percent(error),
        exact=_exact(error),
    )


def _percent(error: Fraction | None) -> str:
    return "n/a" if error is None else decimal_text(error * 100, 2)


def _exact(error: Fraction | None) -> str:
    return "n/a" if error is None else exact_text(error)


def _verdict(errors: Mapping[int | None, Fraction], limit: Fraction | None) -> PredictionVerdict:
    """Optimistic if any rank was; only then pessimistic: who plans by it is hurt by the one and not by the other."""
    if limit is None or not errors:
        return PredictionVerdict.UNJUDGED
    if any(error < -limit for error in errors.values()):
        return PredictionVerdict.OPTIMISTIC
    if any(error > limit for error in errors.values()):
        return PredictionVerdict.PESSIMISTIC
    return PredictionVerdict.PREDICTED


def _overall(
    quantities: Sequence[Quantity], judged_time: QuantityId, steps: int, blocker: Blocker | None
) -> tuple[PredictionVerdict, PredictionReason | None, str]:
    deciding = [one for one in quantities if one.decides]
    words = "; ".join(f"{one.text} {_signed(one.error)} ({one.verdict})" for one in deciding)
    for verdict in (PredictionVerdict.OPTIMISTIC, PredictionVerdict.PESSIMISTIC):
        if any(one.verdict is verdict for one in deciding):
            return verdict, None, words
    missing = {judged_time, "peak_memory"} - {one.id for one in deciding if one.verdict is PredictionVerdict.PREDICTED}
    shown = f"; what could be: {words}" if words else ""
    if blocker is not None:
        note = f"the step's time cannot be judged: {blocker.note}"
        return PredictionVerdict.UNJUDGED, _reason(blocker), note + shown
    if not missing:
        return PredictionVerdict.PREDICTED, None, words
    if steps < MIN_STEPS:
        note = f"{steps} measured steps, at least {MIN_STEPS} are needed"
        return PredictionVerdict.UNJUDGED, "too_few_steps", note + shown
    names = " and ".join(sorted(name.replace("_", " ") for name in missing))
    return PredictionVerdict.UNJUDGED, "not_measured", f"{names} was predicted or measured by one side only{shown}"


def _signed(error: str) -> str:
    return error if error == "n/a" else f"{'' if error.startswith('-') else '+'}{error} %"


def _reason(blocker: Blocker) -> PredictionReason:
    return next((reason for reason in get_args(PredictionReason) if reason == blocker.reason), "not_measured")


def _budget(
    predicted: PredictedStep, metrics: Metrics, of: QuantityId, quantities: Sequence[Quantity]
) -> list[BudgetRow]:
    """The rows whose errors add up to the error of the step (of the mean busy time): means over pipeline ranks.

    What the mean of recorded steps leaves over of the figure that is judged is a row of its own.
    """
    whole = next((one for one in quantities if one.id == of), None)
    if whole is None or not predicted.ranks or not has_spans(metrics):
        return []
    step = of == "step_time"
    names, parts = COMPONENTS if step else COMPUTE, rank_parts(metrics, "wall" if step else metrics.clock)
    ahead = [_mean([{name: Fraction(getattr(rank.time, f"{name}_ns"))} for rank in predicted.ranks], name)
             for name in names]  # fmt: skip
    after = [_mean(parts.values(), name) for name in names]
    total_ahead, total_after = _totals(whole)
    ahead_ns = _whole([*ahead, total_ahead - sum(ahead)])
    after_ns = _whole([*after, total_after - sum(after)])
    return [
        BudgetRow(component=name, predicted_ns=one, measured_ns=other, error_ns=one - other)
        for name, one, other in zip((*names, REST), ahead_ns, after_ns, strict=True)
    ]


def _totals(whole: Quantity) -> tuple[Fraction, Fraction]:
    """Predicted and measured: of the step, or the mean over ranks."""
    count = len(whole.ranks)
    if not count:
        return Fraction(whole.predicted), Fraction(whole.measured)
    ahead, after = (sum(getattr(one, name) for one in whole.ranks) for name in ("predicted", "measured"))
    return Fraction(ahead, count), Fraction(after, count)


def _mean(rows: Collection[Parts], name: str) -> Fraction:
    return sum((row[name] for row in rows), Fraction()) / len(rows)


def _whole(parts: Sequence[Fraction]) -> list[int]:
    """Whole numbers that add up to the rounded sum: each is rounded against the running total."""
    totals = [0, *(round(total) for total in accumulate(parts))]
    return [after - before for before, after in pairwise(totals)]
