"""The header of a rank's records: who it is, on what device, with how much work, under which versions."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import torch
from torch import nn

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.comm.start import Launch
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.git_state import git_state
from hybrid_runtime.job_checkpoints import Checkpoints
from hybrid_runtime.launches import Launches, note_launch
from hybrid_runtime.models.flops import flops
from hybrid_runtime.peak_rates import BFLOAT16, FLOAT32, TF32, peak_rate
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.costs import costs_of_names
from hybrid_runtime.records import Header, Host
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.serving.load import Traffic
from hybrid_runtime.telemetry import host as telemetry_host
from hybrid_runtime.telemetry.clock_offset import measure_offset
from hybrid_runtime.telemetry.host import Found, devices_of, find_gpu, with_own_names
from hybrid_runtime.telemetry.kernel import this_kernel
from hybrid_runtime.telemetry.machine import machine
from hybrid_runtime.telemetry.nvml_sampler import sampling
from hybrid_runtime.telemetry.secrets import hidden_words


def describe_rank(
    deployment: Deployment,
    plan: Plan,
    units: Mapping[str, nn.Module],
    groups: Groups,
    host: Host,
    folder: RunFolder,
    checkpoints: Checkpoints | None = None,
    traffic: Traffic | None = None,
) -> Header:
    """Every rank calls this: devices and clocks can only be described together. Rank 0 notes the launch.

    Args:
        traffic: what is asked in every round; known to rank 0 alone.
    """
    place, device, checkpoints = groups.place, groups.device, checkpoints or Checkpoints()
    gpu = find_gpu(device.index or 0) if device.type == "cuda" else None
    mine = Found(host, gpu, telemetry_host.cpu_name(), this_kernel(host.name))
    found = with_own_names(cast("list[Found]", groups.gather_objects(mine)))
    host = found[place.rank].host
    offset = measure_offset(place.rank, [rank.kernel.clock for rank in found], group=groups.control)
    by_kind = flops_per_step(deployment, plan, units)
    first_here = [rank.host.name for rank in found].index(host.name) == place.rank
    own_device = devices_of(found)[place.rank]
    peak = peak_rate(own_device.name, _numbers(deployment, device), deployment.telemetry.peak_flops_per_device)
    launches = note_launch(folder, deployment.name, deployment.fingerprint) if place.rank == 0 else Launches()
    return Header(
        plan_fingerprint=plan.fingerprint,
        deployment_fingerprint=deployment.fingerprint,
        rank=place.rank,
        world_size=plan.mesh.world_size,
        dp=place.dp,
        pp=place.pp,
        tp=place.tp,
        stages=tuple(stage.index for stage in plan.stages_of(place.pp)),
        device=own_device,
        host=host,
        backend=str(torch.distributed.get_backend()),
        clock="cuda_event" if device.type == "cuda" else "wall",
        clock_offset_ns=offset.offset_ns,
        clock_uncertainty_ns=offset.uncertainty_ns,
        flops_per_step=sum(by_kind.values()),
        flops_by_kind=by_kind,
        started_utc=datetime.now(UTC).isoformat(),
        versions=telemetry_host.versions(),
        environment=telemetry_host.environment(),
        machine=machine() if first_here else {},
        launch=_launch(first_here, launches, checkpoints),
        earlier_launches=launches.same,
        trained_before=checkpoints.trained_before,
        peak_flops_per_s=peak.flops_per_s,
        peak_source=peak.source,
        asked={} if traffic is None else traffic.fingerprint,
    )


def _numbers(deployment: Deployment, device: torch.device) -> str:
    """What the matrix units multiply, in the words of peak_rates.py."""
    assert deployment.model is not None
    if deployment.model.dtype == "bfloat16":
        return BFLOAT16
    return TF32 if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32 else FLOAT32


def peak_of_all(header: Header, groups: Groups) -> int | None:
    """FLOP/s of all devices that the ranks hold, each once; None where one is not known. Every rank calls it."""
    everyone = cast("list[tuple[str, int | None]]", groups.gather_objects((header.device.id, header.peak_flops_per_s)))
    known = [peak for peak in dict(everyone).values() if peak is not None]
    return sum(known) if len(known) == len(dict(everyone)) else None


def _launch(first_here: bool, launches: Launches, checkpoints: Checkpoints) -> dict[str, str]:
    """How this rank was started and from what code; asking git is left to one rank per host."""
    command = {"command": shlex.join(hidden_words(sys.orig_argv))}
    if not first_here:
        return command
    others = launches.unknown or ", ".join(launches.named) or "none"
    return command | {
        "working directory": str(Path.cwd()),
        "git commit of the working directory": git_state(Path.cwd()),
        "earlier launches of this name with other settings": f"n/a: {others}" if launches.unknown else others,
        **({"resumed from": str(checkpoints.resumed_from)} if checkpoints.resumed_from else {}),
    }


def start_sampler(records: Path, header: Header, launch: Launch, groups: Groups) -> AbstractContextManager[None]:
    """One NVML sampler per host, started by the host's first rank; every rank of a GPU run calls this."""
    if header.device.kind != "cuda":
        return nullcontext()
    mine = (header.host.name, header.device.id)
    everyone = cast("list[tuple[str, str]]", groups.gather_objects(mine))
    if launch.local_rank != 0:
        return nullcontext()
    uuids = list(dict.fromkeys(device for host, device in everyone if host == header.host.name))
    return sampling(uuids, records / f"nvml-{header.host.name}.jsonl")


def flops_per_step(deployment: Deployment, plan: Plan, units: Mapping[str, nn.Module]) -> dict[str, int]:
    """This rank's FLOPs of one step by kind, counted on the modules that will run.

    A user's own units were counted when the plan was made, for the whole model: a rank does its tensor-parallel share.
    """
    total = {"F": 0, "I": 0, "W": 0}
    planned = costs_of_names(list(units), plan.units)
    for (_, unit), cost in zip(units.items(), planned, strict=True):
        if deployment.shape is not None or callable(getattr(unit, "flops", None)):
            counted = flops(unit, plan.microbatch_size, plan.sequence_length)
        else:
            kinds = {"F": cost.forward_flops, "I": cost.input_grad_flops, "W": cost.weight_grad_flops}
            counted = {kind: value // plan.tp_degree for kind, value in kinds.items()}
        for kind in total if plan.workload == "train" else "F":
            total[kind] += counted[kind] * plan.num_microbatches
    return total
