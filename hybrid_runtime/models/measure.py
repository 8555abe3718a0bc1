"""Costs of a user's own units, counted without data: each unit runs on the meta device under torch's FLOP counter.

    F   FLOPs of the forward pass
    I   FLOPs of a backward pass that computes gradients of the unit's inputs only (parameters frozen)
    W   FLOPs of the whole backward pass, less I

So F + I + W is exactly what a step computes, and I what must be done before the gradient can be sent on. A first unit
has no input gradient, so its whole backward is W. Counted are matrix products, convolutions and attention, as
`torch.utils.flop_counter` does; attention runs as plain products here, without the causal half and the recomputation
of the formulas for the Llama family (planner/costs.py).

A unit that may be cut is measured whole; that its parts cost alike is its own promise. How many of its parameters
belong to no part (a norm) follows from the sizes of its first and last pieces of one part. A tied weight forbids cuts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybrid_runtime.errors import HybridRuntimeError, UsageError
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch, UnitSpec
from hybrid_runtime.pieces import Slice
from hybrid_runtime.plan import UnitCost


def measured_costs(
    specs: Sequence[UnitSpec],
    *,
    microbatch_size: int,
    sequence_length: int,
    dtype: torch.dtype = torch.float32,
    workload: str = "train",
) -> tuple[UnitCost, ...]:
    """Cost of every unit for one microbatch, all tensor-parallel ranks together (units are built for one rank).

    Args:
        workload: "train", or "forward" where I and W are 0.

    Raises:
        UsageError: a unit cannot be built or run on the meta device, or has another number of parts than it says.
    """
    shape = (microbatch_size, sequence_length)
    tokens = torch.zeros(shape, dtype=torch.int64, device="meta")
    microbatch = Microbatch(tokens, tokens if workload == "train" else None)
    context = BuildContext(device=torch.device("meta"), dtype=dtype)
    carry: Carry = ()
    costs = []
    tied = {name for spec in specs if spec.tied for name in (spec.name, *(owner for owner, _ in spec.tied.values()))}
    for spec in specs:
        with _explained(spec.name):
            unit = _built(spec, context)
            cost, carry = _measure(spec, unit, carry, microbatch, train=workload == "train")
            if spec.parts > 1 and spec.name not in tied:
                fixed = _fixed_parameters(spec, context, cost.parameters)
                cost = cost.model_copy(update={"parts": spec.parts, "fixed_parameters": fixed})
            costs.append(cost)
    ends = costs[0].name, costs[-1].name
    return tuple(
        cost
        if workload != "train" or cost.name in ends
        else cost.model_copy(update={"full_recompute_flops": cost.forward_flops})
        for cost in costs
    )


def _built(spec: UnitSpec, context: BuildContext) -> nn.Module:
    with torch.device("meta"):
        unit = spec.build(replace(context, unit=spec.name))
    if not isinstance(unit, nn.Module):
        raise UsageError(f"unit {spec.name!r} was built as a {type(unit).__name__}; build must return an nn.Module")
    return unit


def _fixed_parameters(spec: UnitSpec, context: BuildContext, whole: int) -> int:
    """What the first piece holds beside its parts. Between the first and the last of `parts` lie parts - 2 equal ones;
    what the last piece holds beside its parts (a bias added after the sum) is left to them."""
    parts = spec.parts
    pieces = (_built(spec, replace(context, piece=Slice(start, start + 1, parts))) for start in (0, parts - 1))
    first, last = (sum(parameter.numel() for parameter in piece.parameters()) for piece in pieces)
    between = whole - first - last
    part, rest = divmod(between, parts - 2) if parts > 2 else (last, between)
    if rest or not 0 <= part <= min(first, last):
        raise UsageError(
            f"unit {spec.name!r} has {whole} parameters, its first part of {parts} has {first} and its last one "
            f"{last}: these are no equal parts; build only what context.piece says, or leave UnitSpec.parts out"
        )
    return first - part


def _measure(
    spec: UnitSpec, unit: nn.Module, carry: Carry, microbatch: Microbatch, *, train: bool
) -> tuple[UnitCost, Carry]:
    forward, output = _forward_flops(unit, carry, microbatch)
    if not isinstance(output, tuple) or not all(isinstance(tensor, Tensor) for tensor in output):
        raise UsageError(f"unit {spec.name!r} returned a {type(output).__name__}; a unit returns a tuple of tensors")
    whole = inputs_only = 0
    if train:
        whole = _backward_flops(unit, carry, microbatch)
        frozen = [parameter for parameter in unit.parameters() if parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        inputs_only = _backward_flops(unit, carry, microbatch)
    held = sum(p.numel() for name, p in unit.named_parameters() if name not in spec.tied)
    cost = UnitCost(
        name=spec.name,
        forward_flops=forward,
        input_grad_flops=inputs_only,
        weight_grad_flops=whole - inputs_only,
        parameters=held,
        parts=1 if spec.rows is None else spec.rows.count,
    )
    return cost, output


def _forward_flops(unit: nn.Module, carry: Carry, microbatch: Microbatch) -> tuple[int, Carry]:
    with torch.no_grad(), _counting() as counter:
        output = unit(carry, microbatch)
    return counter.get_total_flops(), output


def _backward_flops(unit: nn.Module, carry: Carry, microbatch: Microbatch) -> int:
    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in carry)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        outputs: list[Tensor] = [y for y in unit(inputs, microbatch) if y.requires_grad]
    if not outputs:
        return 0
    with _counting() as counter:
        torch.autograd.backward(outputs, [torch.empty_like(y) for y in outputs])
    return counter.get_total_flops()


@contextlib.contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except HybridRuntimeError:
        raise
    except Exception as problem:
        raise UsageError(
            f"unit {name!r} cannot be measured without data ({type(problem).__name__}: {problem}); let it create its "
            f"tensors on context.device and take no decision on values"
        ) from problem
