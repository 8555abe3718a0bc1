"""This project's side: the parts that `hybrid_runtime.job` puts together, and its own `run_step`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from hybrid_runtime import job
from hybrid_runtime.comm.groups import Backend
from hybrid_runtime.data.opening import open_source
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job_header import describe_rank
from hybrid_runtime.job_orders import LEDGER_STEPS, Order
from hybrid_runtime.job_parts import Parts, assemble, build, join_mesh
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.telemetry.host import settle
from hybrid_runtime.telemetry.recorder import NullRecorder, Recorder

_TIMEOUT = timedelta(minutes=5)


def plan_of(deployment: Deployment) -> Plan:
    """The plan that the runtime would run."""
    return make_plan(deployment, model_costs(deployment, model_units(deployment.model, deployment.shape)))


def build_parts(deployment: Deployment, folder: Path, device: torch.device, *, telemetry: bool = True) -> Parts:
    """One rank's parts as in `job.run_rank`, with the recorder on or off. Records go into `folder`."""
    specs = model_units(deployment.model, deployment.shape)
    plan = plan_of(deployment)
    backend: Backend = "nccl" if device.type == "cuda" else "gloo"
    groups = join_mesh(plan, specs, device=device, backend=backend, timeout=_TIMEOUT)
    built = build(deployment, plan, specs, groups)
    recorder = NullRecorder(device)
    if telemetry:
        rank = dist.get_rank()
        host = settle(rank, dist.get_world_size(), 1, pin=False)  # benchmarks.ranks has pinned this process
        header = describe_rank(deployment, plan, built.units, groups, host, RunFolder(folder).create())
        records = RunFolder(folder).records / f"rank{rank}.jsonl"
        recorder = Recorder(header, records, device, groups.clocks, built.ledger)
    return assemble(deployment, plan, groups, built, open_source(deployment.data), recorder)


def stepper(parts: Parts, *, warmup_steps: int = 0, watched: bool = False) -> Callable[[], float | None]:
    """Runs one step more at every call; returns the mean loss. The first `warmup_steps` are recorded as warm-up.

    Args:
        watched: by the byte ledger, during warm-up, as in a run.
    """
    step = -1

    def run() -> float | None:
        nonlocal step
        step += 1
        phase: Literal["warmup", "measure"] = "warmup" if step < warmup_steps else "measure"
        watch = watched and phase == "warmup" and 0 < step <= LEDGER_STEPS
        loss, _ = job.run_step(parts, Order(step, step, phase=phase, block=1, watch=watch))
        return loss

    return run
