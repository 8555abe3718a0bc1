"""What a plan expects: FLOPs, parameters, microbatches in flight and compute-busy shares. Computed, never measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.plan import Prediction, UnitCost
from hybrid_runtime.planner.costs import costs_of_names
from hybrid_runtime.planner.cuts import Stages
from hybrid_runtime.planner.embedding_rows import stage_parameters
from hybrid_runtime.schedule.actions import ActionList, Kind
from hybrid_runtime.schedule.check import CheckResult
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.replay import Time, replay
from hybrid_runtime.schedule.step_costs import StageKind


def predict(
    lists: Sequence[ActionList],
    stage_to_rank: StageToRank,
    stages: Stages,
    costs: Sequence[UnitCost],
    checked: CheckResult,
    embedding_pieces: Sequence[str] = (),
    recompute: Sequence[RecomputeKind] = (),
) -> Prediction:
    """The prediction for checked lists whose stages hold these units."""
    costs_of = [costs_of_names(stage, costs) for stage in stages]
    step = replay(lists, stage_to_rank, durations_in_flops(stages, costs, recompute))
    return Prediction(
        stage_flops=tuple(sum(cost.flops for cost in stage) for stage in costs_of),
        stage_parameters=stage_parameters(stages, stage_to_rank, costs, embedding_pieces),
        peak_in_flight=checked.peak_in_flight,
        receive_depth=checked.receive_depth,
        ideal_busy_ppm=tuple(int(1_000_000 * busy // step.makespan) for busy in step.busy),
    )


def durations_in_flops(
    stages: Sequence[Sequence[str]], costs: Sequence[UnitCost], recompute: Sequence[RecomputeKind] = ()
) -> Mapping[StageKind, Time]:
    """FLOPs as durations; where nothing was counted, equal stages whose I and W cost as much as F.

    Args:
        recompute: per stage, what I and B compute again; empty for nothing.
    """
    costs_of = [costs_of_names(stage, costs) for stage in stages]
    durations: dict[StageKind, Time] = {}
    counted = any(cost.forward_flops for stage in costs_of for cost in stage)
    for index, stage in enumerate(costs_of):
        forward = sum(cost.forward_flops for cost in stage) if counted else 1
        input_grad = sum(cost.input_grad_flops for cost in stage) if counted else 1
        weight_grad = sum(cost.weight_grad_flops for cost in stage) if counted else 1
        input_grad += sum(cost.again_flops(recompute[index]) for cost in stage) if recompute else 0
        for kind, duration in zip("FIWB", (forward, input_grad, weight_grad, input_grad + weight_grad)):
            durations[index, Kind(kind)] = duration
    return durations
