"""What one rank is made of, put together from plan, groups and data: units, gradients, executor, batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import nn

from hybrid_runtime.comm.groups import Backend, Groups, join_groups
from hybrid_runtime.data.sampler import Batches
from hybrid_runtime.data.tokens import TokenSource
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job_checkpoints import Checkpoints
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.unit import BuildContext, UnitSpec
from hybrid_runtime.pipeline.build import build_stages, edges_of, find_tie, share_tied
from hybrid_runtime.pipeline.executor import Executor
from hybrid_runtime.plan import Plan
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
    tie = find_tie(plan, specs)
    return join_groups(
        plan.mesh,
        edges_of(plan),
        device=device,
        backend=backend,
        tied_pp_ranks=(tie.owner_pp_rank, tie.user_pp_rank) if tie else None,
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
    wanted = {name for stage in plan.stages_of(groups.place.pp) for name in stage.units}
    random = RandomStates(derived_seed(seed, "random", place.dp, place.pp), groups.tp, groups.device)
    context = BuildContext(
        tp=groups.tp,
        sequence_parallel=plan.sequence_parallel,
        device=groups.device,
        dtype=getattr(torch, deployment.model.dtype),
        seed=seed,
        random=random,
    )
    weights_folder = deployment.model.weights if weights else None
    units = build_units([spec for spec in specs if spec.name in wanted], context, weights=weights_folder)
    update = None
    if plan.workload == "train":
        tied, counts = share_tied(find_tie(plan, specs), units, groups)
        steps = deployment.workload.steps
        update = Update(units, groups, deployment.optimizer, steps=steps, tied=tied, count_tied=counts)
    parameters = [parameter for unit in units.values() for parameter in unit.parameters()]
    return Built(units, update, ByteLedger(parameters, update.optimizer if update else None), random)


def assemble(
    deployment: Deployment,
    plan: Plan,
    groups: Groups,
    built: Built,
    source: TokenSource,
    recorder: NullRecorder,
    checkpoints: Checkpoints | None = None,
) -> Parts:
    """Executor and batches around what was built; without checkpoints, none are written."""
    executor = Executor(
        parse_actions(plan.actions[groups.place.pp]),
        build_stages(plan, groups.place.pp, built.units),
        plan.stage_to_rank,
        groups,
        loss_scale=1.0 / plan.tokens_per_step,
        recorder=recorder,
        ledger=built.ledger,
    )
    batches = Batches(
        source,
        global_batch_size=plan.global_batch_size,
        microbatch_size=plan.microbatch_size,
        sequence_length=plan.sequence_length,
        dp_degree=plan.dp_degree,
        dp_rank=groups.place.dp,
        seed=deployment.workload.seed,
        device=groups.device,
    )
    return Parts(groups, executor, built.update, batches, recorder, plan, checkpoints or Checkpoints())
