"""What a step costs beside its units: the executor per action and per step, the optimizer per parameter and rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import monotonic_ns, thread_time_ns

import numpy as np
import torch

from hybrid_runtime.data.tokens import ArrayTokens
from hybrid_runtime.deployment import Optimizer, parse_deployment
from hybrid_runtime.lone.carries import input_specs
from hybrid_runtime.lone.empty import STAGES
from hybrid_runtime.lone.group import Traffic
from hybrid_runtime.lone.maker import lone_groups
from hybrid_runtime.lone.rank import LoneRank, Stage
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.models.build import build_units, model_costs, model_units
from hybrid_runtime.models.unit import BuildContext, UnitSpec
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.tensor_parallel.initialise import any_weights
from hybrid_runtime.training.update import Update

STEPS = 15
_FEW, _MANY = 6, 48  # microbatches
_MOST_UNITS = 8
_CACHES_BYTES = 64 * 2**20  # a step's work passes the caches before they see gradients or the optimizer's state again


def executor_ns(device: torch.device) -> tuple[int, int]:
    """Per action (its message included), and per step: the middle stage of a pipeline of empty stages, twice.

    The time of a step grows by so much per action; what is left at none is the step's own.
    """
    few, many = (_overhead_ns(device, num_microbatches) for num_microbatches in (_FEW, _MANY))
    action_ns = max(0, many - few) // (2 * (_MANY - _FEW))  # an F and a B
    return action_ns, max(0, few - 2 * _FEW * action_ns)


def _overhead_ns(device: torch.device, num_microbatches: int) -> int:
    deployment = parse_deployment(
        {
            "name": "empty",
            "model": {"units": "hybrid_runtime.lone.empty:units"},
            "parallel": {"pp_degree": STAGES},
            "batch": {"global_batch_size": num_microbatches, "microbatch_size": 1, "sequence_length": 8},
            "hardware": {"oversubscribe": True},
        },
        source="empty stages",
    )
    specs = model_units(deployment.model, None)
    plan = make_plan(deployment, model_costs(deployment, specs))
    source = ArrayTokens("nothing", 1, np.zeros(4096, dtype=np.uint16))
    stage = Stage(deployment, plan, specs, device, source, input_specs(plan, specs, torch.float32))
    with LoneRank(stage, 1) as rank:
        rank.warm_up()
        rank.measure(STEPS, visit=0)
        return int(median(step.overhead_ns for step in rank.rehearsed().steps))


@dataclass(frozen=True, slots=True)
class OptimizerCosts:
    """Clearing, norm, clipping and update of a rank: a fixed time, and one per million parameters."""

    fixed_ns: int
    per_million_ns: int
    optimizer_bytes_per_parameter: int
    gradient_bytes_per_parameter: int


def optimizer_costs(
    specs: Sequence[UnitSpec], settings: Optimizer, device: torch.device, dtype: torch.dtype
) -> OptimizerCosts:
    """From a few of the model's own units and from more of them: tensors of real sizes, in real numbers."""
    inner = [replace(spec, tied={}) for spec in (specs[1:-1] or specs)][:_MOST_UNITS]
    few, more = inner[: max(1, len(inner) // 4)], inner
    (small, few_ns, _), (large, more_ns, held) = (_update(some, settings, device, dtype) for some in (few, more))
    per_parameter = max(0.0, (more_ns - few_ns) / (large - small)) if large > small else more_ns / max(1, large)
    return OptimizerCosts(
        fixed_ns=max(0, int(few_ns - per_parameter * small)),
        per_million_ns=int(per_parameter * 10**6),
        optimizer_bytes_per_parameter=held.optimizer // max(1, large),
        gradient_bytes_per_parameter=held.gradients // max(1, large),
    )


@dataclass(frozen=True, slots=True)
class _HeldBytes:
    optimizer: int
    gradients: int


def _update(
    specs: Sequence[UnitSpec], settings: Optimizer, device: torch.device, dtype: torch.dtype
) -> tuple[int, float, _HeldBytes]:
    """Parameters, nanoseconds of an update, and bytes."""
    groups = lone_groups(Mesh(), 0, [], device=device, dtype=dtype, traffic=Traffic())
    with any_weights():
        units = build_units(specs, BuildContext(device=device, dtype=dtype))
    parameters = [parameter for unit in units.values() for parameter in unit.parameters()]
    update = Update(units, groups, settings, steps=10**6)
    others = torch.zeros(_CACHES_BYTES // 4, device=device)
    times = []
    for step in range(STEPS):
        others.add_(1)
        start_ns = _now_ns(device)
        update.buckets.zero()
        cleared_ns = _now_ns(device) - start_ns
        others.add_(1)
        start_ns = _now_ns(device)
        update.apply(step, update.gradient_norm())
        times.append(cleared_ns + _now_ns(device) - start_ns)
    held = ByteLedger(parameters, update.optimizer).memory(watched=False)
    count = sum(parameter.numel() for parameter in parameters)
    return count, float(median(times[2:])), _HeldBytes(held.optimizer, held.gradients)


def _now_ns(device: torch.device) -> int:
    """The clock that compute is counted with; on a GPU once it is idle."""
    if device.type == "cpu":
        return thread_time_ns()
    torch.cuda.synchronize(device)
    return monotonic_ns()
