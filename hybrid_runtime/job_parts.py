"""What one rank is made of, put together from plan, groups and data: units, gradients, executor, batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from hybrid_runtime.comm.groups import Backend, Groups, join_groups
from hybrid_runtime.data.mixture import Mixture
from hybrid_runtime.data.sampler import Batches
from hybrid_runtime.data.tokens import TokenSource
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job_checkpoints import Checkpoints
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.unit import BuildContext, UnitSpec, sharded_specs, specs_of
from hybrid_runtime.pipeline.build import (
    build_lookups,
    build_stages,
    edges_of,
    find_tie,
    lookup_ranks,
    share_tied,
    tied_pairs,
)
from hybrid_runtime.pipeline.executor import Executor
from hybrid_runtime.plan import Plan
from hybrid_runtime.records import REDUCE_GRAD
from hybrid_runtime.schedule.actions import parse_actions
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.tensor_parallel.initialise import derived_seed
from hybrid_runtime.tensor_parallel.random_state import RandomStates
from hybrid_runtime.training.update import Update


@dataclass(frozen=True, slots=True)
class Built:
    """A rank's share of the model. `update` is None for a forward-only workload."""

    units: dict[str, nn.Module]
    update: Update | None
    ledger: ByteLedger
    random: RandomStates


@dataclass(frozen=True, slots=True)
class Parts:
    """What one step needs."""

    groups: Groups
    executor: Executor
    update: Update | None
    batches: Batches
    recorder: NullRecorder
    plan: Plan
    checkpoints: Checkpoints


def join_mesh(
    plan: Plan, specs: Sequence[UnitSpec], *, device: torch.device, backend: Backend, timeout: timedelta
) -> Groups:
    """All process groups that the plan and the model's tied weight need; every rank calls this."""
    return join_groups(
        plan.mesh,
        edges_of(plan),
        device=device,
        backend=backend,
        tied_pairs=tied_pairs(find_tie(plan, specs)),
        lookup_ranks=lookup_ranks(plan),
        timeout=timeout,
    )


def build(
    deployment: Deployment, plan: Plan, specs: Sequence[UnitSpec], groups: Groups, *, weights: bool = True
) -> Built:
    """The units this rank owns, with gradients and optimizer; every rank calls this.

    The learning-rate schedule has the length of a plain run, for candidate and baseline alike.

    Args:
        weights: load the deployment's; False where a checkpoint is about to replace them.
    """
    assert deployment.model is not None
    place, seed = groups.place, deployment.workload.seed
    names = [name for stage in plan.stages_of(place.pp) for name in stage.units]
    names += [piece for piece in plan.embedding_pieces[place.pp : place.pp + 1] if piece]
    random = RandomStates(derived_seed(seed, "random", place.dp, place.pp), groups.tp, groups.device)
    context = BuildContext(
        tp=groups.tp,
        sequence_parallel=plan.sequence_parallel,
        device=groups.device,
        dtype=getattr(torch, deployment.model.dtype),
        compiled=plan.compile,
        seed=seed,
        random=random,
    )
    mine = specs_of(names, sharded_specs(specs, plan.embedding_pieces, place.pp))
    units = build_units(mine, context, weights=deployment.model.weights if weights else None)
    tied = share_tied(find_tie(plan, specs), units, groups)
    update = None
    if plan.workload == "train":
        update = Update(
            units,
            groups,
            deployment.optimizer,
            steps=deployment.workload.steps,
            tied=tied,
            stages=_stages_of_units(plan, place.pp),
            sharded=deployment.parallel.shard_optimizer,
        )
    parameters = [parameter for unit in units.values() for parameter in unit.parameters()]
    return Built(units, update, ByteLedger(parameters, update.optimizer if update else None), random)


def _stages_of_units(plan: Plan, pp_rank: int) -> dict[str, int]:
    """By unit of a rank; rows of a sharded embedding belong to its first stage, as their actions say."""
    stages = plan.stages_of(pp_rank)
    rows = [piece for piece in plan.embedding_pieces[pp_rank : pp_rank + 1] if piece]
    return {name: stage.index for stage in stages for name in stage.units} | dict.fromkeys(rows, stages[0].index)


def assemble(
    deployment: Deployment,
    plan: Plan,
    groups: Groups,
    built: Built,
    source: TokenSource | Mixture,
    recorder: NullRecorder,
    checkpoints: Checkpoints | None = None,
) -> Parts:
    """Executor and batches around what was built; without checkpoints, none are written."""
    update = built.update

    def stage_done(stage: int, loss_sum: Tensor | None) -> None:
        assert update is not None, "only training has gradients"
        if loss_sum is None and groups.dp.group is None:
            return
        with recorder.span(REDUCE_GRAD):
            update.learn_of(loss_sum)
            update.buckets.start_stage(stage)

    executor = Executor(
        parse_actions(plan.actions[groups.place.pp]),
        build_stages(plan, groups.place.pp, built.units, built.random),
        plan.stage_to_rank,
        groups,
        loss_scale=1.0 / plan.tokens_per_step,
        recorder=recorder,
        ledger=built.ledger,
        lookups=build_lookups(plan, built.units, groups, built.ledger),
        stage_done=None if update is None else stage_done,
    )
    batches = Batches(
        source,
        global_batch_size=plan.global_batch_size,
        microbatch_size=plan.microbatch_size,
        sequence_length=plan.sequence_length,
        dp_degree=plan.dp_degree,
        dp_rank=groups.place.dp,
        seed=deployment.workload.seed,
        pack=deployment.data.pack,
        device=groups.device,
    )
    return Parts(groups, executor, update, batches, recorder, plan, checkpoints or Checkpoints())
