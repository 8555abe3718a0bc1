"""What stages pass on, found without data: the model is walked once on the meta device, as one tensor-parallel rank.

A lone rank's neighbours send nothing, so the shape of what it receives must be known before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.point_to_point import TensorSpec, spec_of
from hybrid_runtime.errors import HybridRuntimeError, UsageError
from hybrid_runtime.lone.group import LoneGroup, Traffic
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch, UnitSpec
from hybrid_runtime.plan import Plan


def input_specs(plan: Plan, specs: Sequence[UnitSpec], dtype: torch.dtype) -> Mapping[int, tuple[TensorSpec, ...]]:
    """By stage, the tensors that its first unit is given; empty for stage 0.

    Raises:
        UsageError: a unit cannot run on the meta device.
    """
    context = BuildContext(
        tp=lone_axis(plan.tp_degree, 0, Traffic()),
        sequence_parallel=plan.sequence_parallel,
        device=torch.device("meta"),
        dtype=dtype,
    )
    by_name = {spec.name: spec for spec in specs}
    tokens = torch.zeros((plan.microbatch_size, plan.sequence_length), dtype=torch.int64, device="meta")
    microbatch = Microbatch(tokens, tokens)
    carry: Carry = ()
    found: dict[int, tuple[TensorSpec, ...]] = {}
    for stage in plan.stages:
        found[stage.index] = spec_of(carry)
        if stage is plan.stages[-1]:
            break  # what the last stage returns is the loss, and goes nowhere
        for name in stage.units:
            carry = _output(name, by_name[name], context, carry, microbatch)
    return found


def _output(name: str, spec: UnitSpec, context: BuildContext, carry: Carry, microbatch: Microbatch) -> Carry:
    try:
        with torch.no_grad():
            unit: nn.Module = build_units([replace(spec, tied={})], context)[spec.name]
            output: Carry = unit(carry, microbatch)
            return output
    except HybridRuntimeError:
        raise
    except Exception as problem:
        raise UsageError(
            f"unit {name!r} cannot run without data ({type(problem).__name__}: {problem}), so it cannot be rehearsed; "
            "let it create its tensors on context.device and take no decision on values"
        ) from problem


def lone_axis(size: int, rank: int, traffic: Traffic) -> Axis:
    """An axis of absent peers, without shared memory."""
    return Axis() if size == 1 else Axis(size, rank, LoneGroup(rank, size, traffic))
