"""What units pass on, found without data: the model is walked once on the meta device, as one tensor-parallel rank.

A lone rank's neighbours send nothing, so the shape of what it receives must be known before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.point_to_point import TensorSpec, spec_of
from hybrid_runtime.errors import HybridRuntimeError, UsageError
from hybrid_runtime.lone.group import LoneGroup, Traffic
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch, UnitSpec, specs_of
from hybrid_runtime.plan import Plan

Spec = tuple[TensorSpec, ...]


def input_specs(plan: Plan, specs: Sequence[UnitSpec], dtype: torch.dtype) -> Mapping[int, Spec]:
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
    units = specs_of([name for stage in plan.stages for name in stage.units], specs)
    inputs = inputs_of(units, context, plan.microbatch_size, plan.sequence_length)
    by_stage = {stage.index: [next(inputs) for _ in stage.units] for stage in plan.stages}
    return {index: given[0] for index, given in by_stage.items()}


def inputs_of(
    units: Sequence[UnitSpec], context: BuildContext, microbatch_size: int, sequence_length: int
) -> Iterator[Spec]:
    """For every unit in turn, the tensors that it is given.

    Args:
        units: of the whole model, in order, or its beginning.
        context: on the meta device.

    Raises:
        UsageError: a unit cannot run there.
    """
    tokens = torch.zeros((microbatch_size, sequence_length), dtype=torch.int64, device="meta")
    microbatch = Microbatch(tokens, tokens)
    carry: Carry = ()
    for number, spec in enumerate(units):
        yield spec_of(carry)
        if number + 1 < len(units):  # what the last one returns goes nowhere
            carry = _output(spec, context, carry, microbatch)


def _output(spec: UnitSpec, context: BuildContext, carry: Carry, microbatch: Microbatch) -> Carry:
    try:
        with torch.no_grad():
            unit = build_units([replace(spec, tied={})], context)[spec.name]
            output: Carry = unit(carry, microbatch)
            return output
    except HybridRuntimeError:
        raise
    except Exception as problem:
        raise UsageError(
            f"unit {spec.name!r} cannot run without data ({type(problem).__name__}: {problem}), so it cannot be "
            "measured alone; let it create its tensors on context.device and take no decision on values"
        ) from problem


def lone_axis(size: int, rank: int, traffic: Traffic) -> Axis:
    """An axis of absent peers, without shared memory."""
    return Axis() if size == 1 else Axis(size, rank, LoneGroup(rank, size, traffic))
