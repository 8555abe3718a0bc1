"""This project's side: the parts that `hybrid_runtime.job` puts together, and its own `run_step`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from hybrid_runtime import job
from hybrid_runtime.comm.groups import Backend, Groups, join_groups
from hybrid_runtime.data.sampler import Batches
from hybrid_runtime.data.tokens import open_source
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job_header import describe_rank
from hybrid_runtime.models.build import build_units, model_costs, model_units
from hybrid_runtime.models.unit import BuildContext, UnitSpec
from hybrid_runtime.pipeline.build import build_stages, edges_of
from hybrid_runtime.pipeline.executor import Executor
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.schedule.actions import parse_actions
from hybrid_runtime.telemetry.host import settle
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.telemetry.recorder import NullRecorder, Recorder


def plan_of(deployment: Deployment) -> Plan:
    """The plan that the runtime would run."""
    return make_plan(deployment, model_costs(deployment, model_units(deployment.model, deployment.shape)))


def build_parts(deployment: Deployment, folder: Path, device: torch.device, *, telemetry: bool = True) -> job.Parts:
    """One rank's parts as in `job.run_rank`, with the recorder on or off. Records go into `folder`."""
    specs = model_units(deployment.model, deployment.shape)
    plan = plan_of(deployment)
    backend: Backend = "nccl" if device.type == "cuda" else "gloo"
    groups = join_groups(plan.mesh, edges_of(plan), device=device, backend=backend)
    units = _units(deployment, plan, specs, groups)
    update = job.make_update(deployment, plan, units, None, groups)
    parameters = [parameter for unit in units.values() for parameter in unit.parameters()]
    ledger = ByteLedger(parameters, update.optimizer if update else None)
    recorder = NullRecorder(device)
    if telemetry:
        rank = dist.get_rank()
        host = settle(rank, dist.get_world_size(), 1, pin=False)  # benchmarks.ranks has pinned this process
        header = describe_rank(deployment, plan, units, groups, host)
        records = RunFolder(folder).create().records / f"rank{rank}.jsonl"
        recorder = Recorder(header, records, device, groups.clocks, ledger)
    executor = Executor(
        parse_actions(plan.actions[groups.place.pp]),
        build_stages(plan, groups.place.pp, units),
        plan.stage_to_rank,
        groups,
        loss_scale=1.0 / plan.tokens_per_step,
        recorder=recorder,
        ledger=ledger,
    )
    return job.Parts(groups, executor, update, _batches(deployment, plan, groups), recorder, plan)


def _units(deployment: Deployment, plan: Plan, specs: list[UnitSpec], groups: Groups) -> dict[str, nn.Module]:
    assert deployment.model is not None
    wanted = {name for stage in plan.stages_of(groups.place.pp) for name in stage.units}
    context = BuildContext(tp=groups.tp, device=groups.device, seed=deployment.workload.seed)
    return build_units([spec for spec in specs if spec.name in wanted], context, weights=deployment.model.weights)


def _batches(deployment: Deployment, plan: Plan, groups: Groups) -> Batches:
    return Batches(
        open_source(deployment.data),
        global_batch_size=plan.global_batch_size,
        microbatch_size=plan.microbatch_size,
        sequence_length=plan.sequence_length,
        seed=deployment.workload.seed,
        device=groups.device,
    )


def stepper(parts: job.Parts) -> Callable[[], float | None]:
    """Runs one step more at every call; returns the mean loss."""
    step = -1

    def run() -> float | None:
        nonlocal step
        step += 1
        loss, _ = job.run_step(parts, step, 1, "measure", False)
        return loss

    return run
