"""From a calculated layout to what plan.json promises: where every rank's time goes, and what it holds."""

from __future__ import annotations

from hybrid_runtime.planner.evaluate import Evaluated
from hybrid_runtime.planner.layout import Setting
from hybrid_runtime.planner.stage_costs import overheads_ns
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.predicted import PredictedRank, PredictedStep, RankTime
from hybrid_runtime.schedule.account import rank_times
from hybrid_runtime.schedule.actions import Kind


def predicted_step(found: Evaluated, setting: Setting, model: StepModel) -> PredictedStep:
    """The prediction of a layout, without what it was compared with."""
    return PredictedStep(
        step_time=model.interval(found.step_ns),
        pipeline_ns=int(found.step.makespan),
        ranks=tuple(
            PredictedRank(
                pp_rank=rank,
                time=time,
                memory=found.memory[rank],
                flops=found.layout.num_microbatches * found.staged.rank_work(rank).flops,
            )
            for rank, time in enumerate(_rank_times(found, setting, model))
        ),
        bound_ns=found.bound_ns,
        labels=dict(model.labels),
        source=model.source,
        fingerprint=dict(model.fingerprint),
    )


def _rank_times(found: Evaluated, setting: Setting, model: StepModel) -> list[RankTime]:
    """The parts of every rank add up to the step: what is left over is waiting for the slowest rank."""
    times, lists, costs = [], found.lists, found.step.costs
    lookups = any(action.kind.is_lookup for actions in lists for action in actions)
    overheads = overheads_ns(found.staged, setting, model, lookups=lookups)
    for rank, replayed in enumerate(rank_times(found.step)):
        compute = dict.fromkeys(Kind, 0)
        for action in lists[rank]:
            compute[action.kind] += int(costs.compute(action.stage, action.kind))
        overhead = sum(overheads[action.stage, action.kind] for action in lists[rank])
        time = RankTime(
            forward_ns=compute[Kind.F] + compute[Kind.EF],
            backward_ns=compute[Kind.B] + compute[Kind.I] + compute[Kind.EB],
            weight_grad_ns=compute[Kind.W],
            tensor_parallel_ns=int(replayed.tensor_parallel) - overhead,
            messages_ns=int(replayed.messages),
            data_parallel_ns=found.data_parallel_ns[rank],
            optimizer_ns=found.optimizer_ns[rank],
            overhead_ns=overhead + model.step_ns,
        )
        times.append(time.model_copy(update={"idle_ns": found.step_ns - time.total_ns}))
    return times
