"""Collectives over one axis of the mesh: plain ones, and pairs of forward and backward for autograd.

    function                  forward            backward           Megatron-LM's name (Shoeybi et al. 2019)
    sum_forward               all-reduce         identity           g
    sum_backward              identity           all-reduce         f
    gather_sequence           all-gather, dim 1  reduce-scatter     g-bar (Korthikanti et al. 2022)
    reduce_scatter_sequence   reduce-scatter     all-gather, dim 1  its conjugate

Every one is a no-op on an axis of size 1. What is *started* returns a `Pending`; only its `wait` counts as waiting.
All work with gloo on CPU and NCCL on GPUs. To let a started collective overlap later kernels on GPUs, set
CUDA_DEVICE_MAX_CONNECTIONS=1, so that it is queued before them.

Shapes: B microbatch, S sequence, s = S / axis size, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.errors import PlanError

# torch 2.13 renamed both; the old names warn there and are the only ones before it.
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Waitable(Protocol):
    """What a `Pending` waits for: a `dist.Work`, or a message through shared memory."""

    def wait(self) -> Any:
        """Blocks until it is done."""


class Pending:
    """A collective under way. `wait` must be called exactly once and returns the result."""

    __slots__ = ("_axis", "_finish", "_inputs", "_name", "_result", "_work")

    def __init__(
        self,
        axis: Axis,
        name: str,
        result: Tensor,
        work: Waitable | None = None,
        *,
        inputs: Tensor | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._axis = axis
        self._name = name
        self._result = result
        self._work = work
        self._inputs = inputs  # must stay alive until the collective is done
        self._finish = finish

    def wait(self) -> Tensor:
        """Blocks until the result is there; that, and putting the result together, is reported to the axis' clock."""
        if self._work is None:
            return self._result
        with self._axis.waiting(self._name):
            self._work.wait()
            result = self._result if self._finish is None else self._finish(self._result)
        self._work = self._inputs = None
        return result


def start_all_reduce(
    x: Tensor, axis: Axis, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM, *, name: str = "all_reduce"
) -> Pending:
    """Starts reducing the contiguous `x` in place over the axis; `name` is what is waited for."""
    if axis.group is None:
        return Pending(axis, name, x)
    shared = axis.shared
    if shared is not None and op == dist.ReduceOp.SUM and shared.takes(x):
        with axis.waiting(name):
            shared.start(x)
        return Pending(axis, name, x, shared, finish=shared.add_others)
    return Pending(axis, name, x, dist.all_reduce(x, op=op, group=axis.group, async_op=True))


def all_reduce(
    x: Tensor, axis: Axis, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM, *, name: str = "all_reduce"
) -> Tensor:
    """Reduces the contiguous `x` in place over the axis and returns it; `name` is what is waited for."""
    return start_all_reduce(x, axis, op, name=name).wait()


def all_gather_stack(x: Tensor, axis: Axis) -> Tensor:
    """Every rank's equally shaped `x`, stacked along a new dim 0 in order of rank."""
    if axis.group is None:
        return x.unsqueeze(0)
    x = x.contiguous()
    out = x.new_empty(axis.size * x.numel())
    work = _all_gather(out, x.view(-1), group=axis.group, async_op=True)
    return Pending(axis, "all_gather", out, work, inputs=x).wait().view(axis.size, *x.shape)


def start_gather_sequence(x_BsH: Tensor, axis: Axis) -> Pending:
    """Starts gathering (B, s, H) of every rank to (B, S, H)."""
    if axis.group is None:
        return Pending(axis, "all_gather", x_BsH)
    x_BsH = x_BsH.contiguous()
    batch, part, *rest = x_BsH.shape
    out = x_BsH.new_empty(axis.size * batch, part, *rest)
    work = _all_gather(out, x_BsH, group=axis.group, async_op=True)

    def reorder(gathered: Tensor) -> Tensor:
        ranks_first = gathered.view(axis.size, batch, part, *rest)
        return ranks_first.transpose(0, 1).reshape(batch, axis.size * part, *rest)  # a view when B is 1

    return Pending(axis, "all_gather", out, work, inputs=x_BsH, finish=reorder)


def start_reduce_scatter_sequence(x_BSH: Tensor, axis: Axis) -> Pending:
    """Starts summing (B, S, H) over the axis; each rank gets its (B, s, H).

    Raises:
        PlanError: the axis' size does not divide the sequence length.
    """
    if axis.group is None:
        return Pending(axis, "reduce_scatter", x_BSH)
    batch, length, *rest = x_BSH.shape
    if length % axis.size:
        raise PlanError(
            f"sequence parallelism over {axis.size} ranks cannot split a sequence of {length} tokens; "
            f"make sequence_length a multiple of {axis.size}"
        )
    part = length // axis.size
    ranks_first = x_BSH.reshape(batch, axis.size, part, *rest).transpose(0, 1).contiguous()
    out = x_BSH.new_empty(batch, part, *rest)
    flat = ranks_first.view(axis.size * batch, part, *rest)
    work = _reduce_scatter(out, flat, group=axis.group, async_op=True)
    return Pending(axis, "reduce_scatter", out, work, inputs=flat)


def start_sum_slices(flat: Tensor, axis: Axis, name: str = "reduce_scatter") -> Pending:
    """Starts summing equal slices of `flat` over the axis, in place: rank r's r-th one holds the sum, others anything.

    The axis' size must divide the length of `flat`.
    """
    own = flat.chunk(axis.size)[axis.rank]
    work = None if axis.group is None else _reduce_scatter(own, flat, group=axis.group, async_op=True)
    return Pending(axis, name, own, work, inputs=flat)


def start_gather_slices(flat: Tensor, axis: Axis, name: str = "all_gather") -> Pending:
    """Starts filling `flat` with the r-th of its equal slices as rank r has it, in place.

    The axis' size must divide the length of `flat`.
    """
    own = flat.chunk(axis.size)[axis.rank]
    work = None if axis.group is None else _all_gather(flat, own, group=axis.group, async_op=True)
    return Pending(axis, name, flat, work, inputs=flat)


def sum_forward(x: Tensor, axis: Axis) -> Tensor:
    """The sum of `x` over the axis (a new tensor); the gradient passes unchanged."""
    return x if axis.group is None else _SumForward.apply(x, axis)  # type: ignore[no-untyped-call]


def sum_backward(x: Tensor, axis: Axis) -> Tensor:
    """`x` itself; its gradient is summed over the axis."""
    return x if axis.group is None else _SumBackward.apply(x, axis)  # type: ignore[no-untyped-call]


def gather_sequence(x_BsH: Tensor, axis: Axis) -> Tensor:
    """(B, s, H) of every rank joined to (B, S, H); the gradient is summed over the axis and split again."""
    return x_BsH if axis.group is None else _GatherSequence.apply(x_BsH, axis)  # type: ignore[no-untyped-call]


def reduce_scatter_sequence(x_BSH: Tensor, axis: Axis) -> Tensor:
    """The rank's (B, s, H) of the sum of (B, S, H) over the axis; the gradient is gathered.

    Raises:
        PlanError: the axis' size does not divide the sequence length.
    """
    return x_BSH if axis.group is None else _ReduceScatterSequence.apply(x_BSH, axis)  # type: ignore[no-untyped-call]


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return all_reduce(x.clone(memory_format=torch.contiguous_format), axis)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return all_reduce(dy.clone(memory_format=torch.contiguous_format), ctx.axis), None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BsH: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return start_gather_sequence(x_BsH, axis).wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BSH: Tensor) -> tuple[Tensor, None]:
        return start_reduce_scatter_sequence(dy_BSH, ctx.axis).wait(), None


class _ReduceScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BSH: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return start_reduce_scatter_sequence(x_BSH, axis).wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BsH: Tensor) -> tuple[Tensor, None]:
        return start_gather_sequence(dy_BsH, ctx.axis).wait(), None
