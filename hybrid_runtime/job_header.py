"""The header of a rank's records: who it is, on what device, with how much work, under which versions."""

from __future__ import annotations

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
from hybrid_runtime.models.flops import flops
from hybrid_runtime.plan import Plan
from hybrid_runtime.records import Header, Host
from hybrid_runtime.telemetry import host as telemetry_host
from hybrid_runtime.telemetry.clock_offset import measure_offset
from hybrid_runtime.telemetry.host import Found, devices_of, find_gpu
from hybrid_runtime.telemetry.nvml_sampler import sampling


def describe_rank(
    deployment: Deployment, plan: Plan, units: Mapping[str, nn.Module], groups: Groups, host: Host
) -> Header:
    """Every rank calls this: devices and clocks can only be described together."""
    place, device = groups.place, groups.device
    gpu = find_gpu(device.index or 0) if device.type == "cuda" else None
    found = cast("list[Found]", groups.gather_objects(Found(host, gpu, telemetry_host.cpu_name())))
    offset = measure_offset(place.rank, [rank.host.name for rank in found], group=groups.control)
    by_kind = _flops_per_step(deployment, plan, units)
    return Header(
        plan_fingerprint=plan.fingerprint,
        deployment_fingerprint=deployment.fingerprint,
        rank=place.rank,
        world_size=plan.mesh.world_size,
        dp=place.dp,
        pp=place.pp,
        tp=place.tp,
        stages=tuple(stage.index for stage in plan.stages_of(place.pp)),
        device=devices_of(found)[place.rank],
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
    )


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


def _flops_per_step(deployment: Deployment, plan: Plan, units: Mapping[str, nn.Module]) -> dict[str, int]:
    """This rank's FLOPs of one step by kind, counted on the modules that will run.

    A user's own units were counted when the plan was made, for the whole model: a rank does its tensor-parallel share.
    """
    total = {"F": 0, "I": 0, "W": 0}
    planned = {cost.name: cost for cost in plan.units}
    for name, unit in units.items():
        if deployment.shape is not None or callable(getattr(unit, "flops", None)):
            counted = flops(unit, plan.microbatch_size, plan.sequence_length)
        else:
            cost = planned[name]
            kinds = {"F": cost.forward_flops, "I": cost.input_grad_flops, "W": cost.weight_grad_flops}
            counted = {kind: value // plan.tp_degree for kind, value in kinds.items()}
        for kind in total if plan.workload == "train" else "F":
            total[kind] += counted[kind] * plan.num_microbatches
    return total
