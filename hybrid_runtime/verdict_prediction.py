"""Part of `verdict.json`: what a plan predicted of itself, beside what was measured, and whether it held.

It says something of the plan, not of the promises: it has verdicts of its own and never changes an exit code.
"""

from __future__ import annotations

import enum
from typing import Literal

from hybrid_runtime.verdict_measured import Frozen


class PredictionVerdict(enum.StrEnum):
    """How a prediction came out.

    PREDICTED: every error that decides is within its limit. OPTIMISTIC: measured worse than predicted, by more than
    that; PESSIMISTIC: better. STALE: it was made for another machine or other versions. UNJUDGED: with the reason.
    """

    PREDICTED = "PREDICTED"
    OPTIMISTIC = "OPTIMISTIC"
    PESSIMISTIC = "PESSIMISTIC"
    STALE = "STALE"
    UNJUDGED = "UNJUDGED"


PredictionReason = Literal[
    "no_prediction",
    "too_few_steps",
    "not_measured",
    "oversubscribed",
    "contended",
    "hardware_mismatch",
    "foreign_process",
    "throttled",
    "clock_spread",
    "counters_unsupported",
]
QuantityId = Literal["step_time", "busy", "idle", "peak_memory", "first_token", "output_token", "request"]


class RankError(Frozen):
    """One pipeline rank: whole ns or bytes, and predicted / measured - 1 in percent ("n/a" where nothing was measured).

    Attributes:
        predicted, measured: rounded; `exact` is the error as a fraction, before it was.
    """

    pp_rank: int
    predicted: int
    measured: int
    error: str
    exact: str


class Quantity(Frozen):
    """One thing that was predicted, of the whole step or of every pipeline rank.

    Attributes:
        label: how the prediction came about: measured, rehearsed, modelled or declared.
        method: how it was measured, on which clock or counter.
        predicted, measured: of the step; of ranks, those of the worst one. Whole ns or bytes.
        error: predicted / measured - 1 in percent, signed (negative: optimistic), of the worst rank; `exact` is that
            as a fraction.
        median_error: over the ranks; the same as `error` for the step.
        worst_rank: the pipeline rank with the largest error of either sign; None for the step.
        interval: p10 and p90 that were predicted; `inside`: whether `measured` lies between them. None without one.
        limit: largest error that counts as predicted, in percent; None for a quantity that is shown only.
        decides: it enters the verdict.
    """

    id: QuantityId
    text: str
    unit: Literal["ns", "bytes"]
    label: str
    method: str
    predicted: int
    measured: int
    error: str
    exact: str
    median_error: str
    worst_rank: int | None = None
    interval: tuple[int, int] | None = None
    inside: bool | None = None
    limit: str | None = None
    decides: bool = False
    verdict: PredictionVerdict
    ranks: tuple[RankError, ...] = ()


class BudgetRow(Frozen):
    """One component of the time, a mean over ranks in whole ns; error_ns = predicted_ns - measured_ns.

    Attributes:
        component: a part of `predicted.RankTime` without "_ns"; "rest" is what the median step that is judged differs
            in from the mean of the steps whose spans were recorded.
    """

    component: str
    predicted_ns: int
    measured_ns: int
    error_ns: int


class JudgedPrediction(Frozen):
    """Whether what plan.json predicted came true.

    Attributes:
        reason: of UNJUDGED.
        detail: in words, what decided it.
        source: where the plan had its costs from; "" without a prediction.
        stale: what differs between the machine of the prediction and the machine of the run.
        budget_of: the quantity whose error the rows of `budget` add up to, exactly: "step_time", or "busy" where wall
            time is no measurement. Empty with an empty budget.
    """

    verdict: PredictionVerdict
    reason: PredictionReason | None = None
    detail: str
    source: str = ""
    stale: tuple[str, ...] = ()
    quantities: tuple[Quantity, ...] = ()
    budget_of: Literal["step_time", "busy", ""] = ""
    budget: tuple[BudgetRow, ...] = ()
