"""This project's side: the parts that `hybrid_runtime.job` puts together, and its own `run_step`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from hybrid_runtime import job
from hybrid_runtime.comm.groups import Backend, join_groups
from hybrid_runtime.comm.start import Launch
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job_header import describe_rank
from hybrid_runtime.models.build import model_costs, model_units
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
    units = job._build_units(deployment, plan, specs, groups)
    update = job.make_update(deployment, plan, units, None, groups)
    ledger = ByteLedger()
    ledger.register(units.values(), update.optimizer if update else None)
    recorder = NullRecorder(device)
    if telemetry:
        launch = Launch(dist.get_rank(), dist.get_rank(), dist.get_world_size(), dist.get_world_size())
        host = settle(launch.local_rank, launch.local_world_size, 1, pin=False)
        header = describe_rank(deployment, plan, units, groups, host)
        recorder = Recorder(header, RunFolder(folder).create(), device, groups.clocks, ledger)
    executor = Executor(
        parse_actions(plan.actions[groups.place.pp]),
        build_stages(plan, groups.place.pp, units),
        plan.stage_to_rank,
        groups,
        loss_scale=1.0 / plan.tokens_per_step,
        recorder=recorder,
        ledger=ledger,
    )
    return job.Parts(groups, executor, update, job._open_batches(deployment, plan, groups), recorder, plan)


def stepper(parts: job.Parts) -> Callable[[], float | None]:
    """Runs one step more at every call; returns the mean loss."""
    step = -1

    def run() -> float | None:
        nonlocal step
        step += 1
        loss, _ = job.run_step(parts, step, 1, "measure", False)
        return loss

    return run
