"""Whether the work that was promised was done: every action of the plan in every traced step, and no fewer FLOPs.

A step that leaves out microbatches is fast, balanced and worthless.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.plan import Plan
from hybrid_runtime.records import PHASES, RankRecords
from hybrid_runtime.schedule.actions import parse_action

_KINDS = 3  # F, I and W are counted apart


def check_work(ranks: Sequence[RankRecords], plan: Plan) -> None:
    """Every measured step whose spans were recorded holds the compute actions that the plan gives its rank, no others.

    Raises:
        RecordsError: an action is missing or was not planned.
    """
    planned = [frozenset(text for text in texts if parse_action(text).kind.is_compute) for texts in plan.actions]
    for rank in ranks:
        wanted = planned[rank.header.pp]
        for step in rank.measured():
            done = {span.name for span in step.spans} - set(PHASES)
            if done != wanted:
                missing, extra = sorted(wanted - done), sorted(done - wanted)
                what = f"lacks {', '.join(missing[:4])}" if missing else f"holds {', '.join(extra[:4])}"
                raise RecordsError(
                    f"{rank.path}: step {step.step} {what}, and the plan says otherwise; other work was done than "
                    "planned, or the file was edited"
                )


def fewer_flops(candidate: Sequence[RankRecords], plan: Plan, baseline: Sequence[RankRecords]) -> str | None:
    """That the candidate's modules do less than the baseline's, in words; None if not. More is its own loss."""
    ours, theirs = (sum(rank.header.flops_per_step for rank in side) for side in (candidate, baseline))
    if ours + _rounding(plan) >= theirs:
        return None
    return f"the candidate does {ours} FLOPs a step, the baseline {theirs}; the sides do different work"


def _rounding(plan: Plan) -> int:
    """FLOPs of a user's own units are divided over tensor-parallel ranks, each rounded down."""
    return (plan.tp_degree - 1) * _KINDS * len(plan.units) * plan.num_microbatches * plan.dp_degree
