"""From the plan of a training to the plan of its validation: the same stages on the same ranks, forwards only.

rank 0 | 0F0 0F1 0F2 3F0 ...      stages by (microbatch + stage): what can run at the same time stands side by side,
rank 1 | 1F0 1F1 2F0 1F2 ...      and every input comes from further up, so no placement can wait in a circle
"""

from __future__ import annotations

from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.make import place_lookups
from hybrid_runtime.planner.predict import durations_in_flops
from hybrid_runtime.schedule.actions import Action, ActionList, Kind, texts
from hybrid_runtime.schedule.check import check
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.placement import StageToRank


def validation_plan(plan: Plan) -> Plan:
    """What the ranks of a training follow to validate; its prediction is still the training's.

    Raises:
        PlanError: its lists do not pass the check, which would be the planner's own mistake.
    """
    place, names = plan.stage_to_rank, [stage.units for stage in plan.stages]
    compute = forward_lists(place, plan.pp_degree, plan.num_microbatches)
    durations = durations_in_flops(names, plan.units)
    lists = place_lookups(lower(compute, place), place, plan.embedding_pieces, durations)
    found = check(lists, place, plan.num_microbatches, "forward").findings
    if found:
        raise PlanError(f"{plan.name}: the lists of its validation are wrong: {found[0]}; report this as a bug")
    return plan.model_copy(update={"workload": "forward", "actions": tuple(map(texts, lists))})


def forward_lists(stage_to_rank: StageToRank, pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """The forwards of every rank, whatever the placement."""
    by_time = sorted(
        (microbatch + stage, stage, microbatch)
        for stage in range(len(stage_to_rank))
        for microbatch in range(num_microbatches)
    )
    return tuple(
        tuple(Action(stage, Kind.F, microbatch) for _, stage, microbatch in by_time if stage_to_rank[stage] == rank)
        for rank in range(pp_degree)
    )
