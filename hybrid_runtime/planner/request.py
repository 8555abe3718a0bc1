"""From a deployment file to what the planner works on: the space, the setting, and the source of costs."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from hybrid_runtime.calibration import Calibration
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import PlanError
from hybrid_runtime.exact import parse_bytes, parse_gb_per_s
from hybrid_runtime.planner.analytic import AnalyticCosts, Rates
from hybrid_runtime.planner.calibrated import CalibratedCosts
from hybrid_runtime.planner.candidates import Space
from hybrid_runtime.planner.layout import KINDS, MEMORY_SAFETY, Setting
from hybrid_runtime.planner.make import batch_of
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.schedule.choose import AUTO, is_file
from hybrid_runtime.schedule.registry import SCHEDULES, find_schedule
from hybrid_runtime.shapes import LlamaShape

USUAL_NODE = 8  # devices of a node, where the file does not say


def space_of(deployment: Deployment) -> Space:
    """What may vary.

    Raises:
        PlanError: a schedule is unknown, or cannot be planned with.
    """
    search, pipeline, parallel = deployment.search, deployment.pipeline, deployment.parallel
    varied = set(search.vary)
    free = "schedule" in varied
    if not free and is_file(pipeline.schedule):
        raise PlanError(
            f"pipeline.schedule = {pipeline.schedule!r}: lists from a file are not planned with; name a schedule, or "
            "let the schedule vary in search.vary"
        )
    schedules = _schedules(search.schedules if free else [pipeline.schedule], deployment.workload.passes)
    return Space(
        tp_degrees=None if "tp_degree" in varied else (parallel.tp_degree,),
        pp_degrees=None if "pp_degree" in varied else (parallel.pp_degree,),
        dp_degrees=None if "dp_degree" in varied else (parallel.dp_degree,),
        microbatch_sizes=None if "microbatch_size" in varied else (batch_of(deployment).microbatch_size,),
        schedules=schedules,
        virtual_stages=(2, 4) if free else (pipeline.virtual_stages or 2,),
        in_flight=search.in_flight_limit or pipeline.in_flight_limit,
        cuts="fractional" if "cuts" in varied else "even" if pipeline.cuts == "even" else "whole",
        sharded="embedding" in varied,
        ranges=None if "cuts" in varied or isinstance(pipeline.cuts, str) else tuple(pipeline.cuts),
        rows=None if "embedding" in varied else pipeline.embedding_rows,
        recompute=_recompute(deployment),
    )


def setting_of(deployment: Deployment) -> Setting:
    """What is planned for.

    Raises:
        PlanError: there is no model of the Llama family, or no batch.
    """
    batch, shape = batch_of(deployment), _shape(deployment)
    hardware, search, targets = deployment.hardware, deployment.search, deployment.targets
    devices = search.devices or hardware.devices or deployment.mesh.world_size
    memory = None if hardware.memory_per_device is None else parse_bytes(hardware.memory_per_device)
    train = deployment.workload.passes == "train"
    return Setting(
        name=deployment.name,
        workload=deployment.workload.passes,
        shape=shape,
        global_batch_size=batch.global_batch_size,
        sequence_length=batch.sequence_length,
        sequence_parallel=deployment.parallel.sequence_parallel,
        num_devices=devices,
        devices_per_node=search.devices_per_node or min(devices, USUAL_NODE),
        memory_bytes=None if memory is None else int(memory * (1 - MEMORY_SAFETY)),
        limit_text=f"{hardware.memory_per_device} less {int(100 * MEMORY_SAFETY)} %" if memory else "",
        compute_share_limit=_share(targets.compute_balance_pp),
        memory_share_limit=_share(targets.memory_balance_pp),
        recomputes=KINDS if train and "recompute" in search.vary else (),
        shardings=_shardings(deployment),
        compile=deployment.model is not None and deployment.model.compile,
        seed=deployment.workload.seed,
    )


def model_of(deployment: Deployment, calibration: Calibration | None) -> StepModel:
    """The source of costs: measured ones where there are any, else formulas and declared rates.

    Raises:
        PlanError: as `setting_of`.
    """
    assert deployment.model is not None
    shape, dtype = _shape(deployment), deployment.model.dtype
    length, workload = batch_of(deployment).sequence_length, deployment.workload.passes
    sharded, granule = deployment.parallel.sequence_parallel, deployment.search.granule
    if calibration is None:
        master_weights = deployment.optimizer.master_weights
        return AnalyticCosts(shape, length, dtype, workload, sharded, rates_of(deployment), granule, master_weights)
    return CalibratedCosts(
        calibration, shape, length, dtype, workload, sharded, rates_of(deployment), granule, deployment.model.compile
    )


def rates_of(deployment: Deployment) -> Rates:
    """What the file declares of the machine."""
    search = deployment.search
    return Rates(
        flops_per_s=int(search.teraflops_per_device * 10**12),
        link_bytes_per_s=int(parse_gb_per_s(search.link_bandwidth) * 10**9),
        network_bytes_per_s=int(parse_gb_per_s(search.network_bandwidth) * 10**9),
        latency_ns=int(search.latency_us * 1000),
    )


def _schedules(wanted: Sequence[str] | None, workload: str) -> Sequence[str]:
    if wanted is None:
        return (*SCHEDULES, AUTO) if workload == "train" else tuple(SCHEDULES)
    for name in wanted:
        if name != AUTO:
            find_schedule(name)
    return tuple(dict.fromkeys(wanted))


def _share(percent: object) -> Fraction | None:
    return None if percent is None else Fraction(str(percent)) / 100


def forgotten_kinds(deployment: Deployment) -> tuple[RecomputeKind, ...]:
    """What stages of its plans may forget, the least first."""
    if deployment.workload.passes == "forward":
        return ("none",)
    given = deployment.pipeline.recompute
    varied = "recompute" in deployment.search.vary
    return tuple(kind for kind in KINDS if varied or kind == given or (not isinstance(given, str) and kind in given))


def _recompute(deployment: Deployment) -> RecomputeKind | tuple[RecomputeKind, ...]:
    """What a layout's stages forget before anybody sees whether it fits."""
    if deployment.workload.passes == "forward" or "recompute" in deployment.search.vary:
        return "none"
    given = deployment.pipeline.recompute
    return given if isinstance(given, str) else tuple(given)


def _shardings(deployment: Deployment) -> tuple[bool, ...]:
    if deployment.workload.passes == "train" and "shard_optimizer" in deployment.search.vary:
        return False, True
    return (deployment.parallel.shard_optimizer,)


def _shape(deployment: Deployment) -> LlamaShape:
    if deployment.shape is None:
        raise PlanError(
            f"{deployment.name}: the planner knows the costs of models of the Llama family; name a preset or "
            "hf_config, or cut your own units by pipeline.cuts"
        )
    return deployment.shape
