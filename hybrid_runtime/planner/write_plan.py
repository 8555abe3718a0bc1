"""A calculated layout -> the plan that ranks follow: lists lowered and checked, pieces named, prediction attached."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import Plan, StagePlan
from hybrid_runtime.planner.embedding_rows import pieces_of
from hybrid_runtime.planner.evaluate import Evaluated, as_run, lowered_lists
from hybrid_runtime.planner.layout import Setting
from hybrid_runtime.planner.predict import predict
from hybrid_runtime.planner.predicted_step import predicted_step
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.predicted import Alternative, PredictedBaseline
from hybrid_runtime.schedule.actions import texts
from hybrid_runtime.schedule.check import check


def write_plan(
    found: Evaluated,
    setting: Setting,
    model: StepModel,
    baselines: Sequence[PredictedBaseline] = (),
    alternatives: Sequence[Alternative] = (),
) -> Plan:
    """The plan of a layout.

    Raises:
        PlanError: its lists do not pass the check, which would be the planner's own mistake.
    """
    found = as_run(found, setting, model)
    layout, staged = found.layout, found.staged
    lists = lowered_lists(found)
    checked = check(lists, staged.stage_to_rank, layout.num_microbatches, setting.workload)
    if checked.findings:
        raise PlanError(f"{layout}: its lists are wrong: {checked.findings[0]}; report this as a bug of the planner")
    costs = tuple(unit.cost for unit in staged.line.units)
    pieces = pieces_of(found.rows, costs[0].name)
    prediction = predicted_step(found, setting, model)
    return Plan(
        name=setting.name,
        workload=setting.workload,
        tp_degree=layout.mesh.tp_degree,
        pp_degree=layout.mesh.pp_degree,
        dp_degree=layout.mesh.dp_degree,
        sequence_parallel=setting.sequence_parallel and layout.mesh.tp_degree > 1,
        schedule=layout.schedule,
        global_batch_size=setting.global_batch_size,
        microbatch_size=layout.microbatch_size,
        num_microbatches=layout.num_microbatches,
        sequence_length=setting.sequence_length,
        stages=tuple(
            StagePlan(index=index, pp_rank=rank, units=names, recompute=kind)
            for index, (rank, names, kind) in enumerate(zip(staged.stage_to_rank, staged.names, layout.recomputes))
        ),
        units=costs,
        actions=tuple(map(texts, lists)),
        prediction=predict(lists, staged.stage_to_rank, staged.names, costs, checked, pieces, layout.recomputes),
        embedding_pieces=pieces,
        compile=setting.compile,
        shard_optimizer=layout.shard_optimizer if layout.mesh.dp_degree > 1 else None,
        predicted=prediction.model_copy(update={"baselines": tuple(baselines), "alternatives": tuple(alternatives)}),
    )
