"""Whether the work that was promised was done: every action of the plan in every traced step, in modules of full size.

A step that leaves out microbatches is fast, balanced and worthless.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.plan import Plan, UnitCost
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


def skip_warnings(ranks: Sequence[RankRecords]) -> list[str]:
    """That updates were skipped: such a step is shorter, and the model learns less. Nothing where none was."""
    skipped = [step.step for step in ranks[0].steps if step.skipped]
    if not skipped:
        return []
    return [
        f"{len(skipped)} of {len(ranks[0].steps)} steps were skipped, first step {skipped[0]}: the loss or a gradient "
        "was not finite; skipped.jsonl names the units"
    ]


def fewer_flops(ranks: Sequence[RankRecords], plan: Plan) -> str | None:
    """That the modules that ran do less than the model's units need, in words; None if not.

    More is no lie: padded vocabularies and copied key/value heads are work too.
    """
    counted = sum(rank.header.flops_per_step for rank in ranks)
    needed = sum(_of_unit(unit, plan.workload) for unit in plan.units) * plan.num_microbatches * plan.dp_degree
    if counted + _rounding(plan) >= needed:
        return None
    return f"the modules that ran do {counted} FLOPs a step, the model's units need {needed}"


def _of_unit(unit: UnitCost, workload: str) -> int:
    backward = unit.input_grad_flops + unit.weight_grad_flops if workload == "train" else 0
    return unit.forward_flops + backward


def _rounding(plan: Plan) -> int:
    """FLOPs of a user's own units and pieces are divided over tensor-parallel ranks, each rounded down."""
    held = sum(len(stage.units) for stage in plan.stages)
    return (plan.tp_degree - 1) * _KINDS * held * plan.num_microbatches * plan.dp_degree
