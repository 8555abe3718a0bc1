"""Linear layers split over the tensor-parallel axis: explicit autograd Functions over plain local tensors.

    column   weight (O/T, I)   y = x W'           each rank computes some outputs; backward sums dX over the ranks
    row      weight (O, I/T)   y = sum_t x_t W_t' each rank holds some inputs; forward sums Y over the ranks

With sequence parallelism x arrives as (B, S/T, I) at a column layer, which gathers it (again in backward, so only the
shard is kept), and the sum of a row layer is a reduce-scatter to (B, S/T, O).

In a column layer's backward the reduction of dX runs while dW is computed:

    main      dX = dY W | start ---- dW = dY' X ---- wait
    network               [ all-reduce of dX     ]

In an I (a backward without weight gradients, `weight_queue.py`) dW is left in the layer's `weight_queue` instead.

The pieces of a unit that was cut (pieces.py) share its collectives: partial sums travel as they are, not yet summed
over the ranks. Between them go u, the sum so far, and n, the input of every part; both are (B, S, ...) always:

    first    y, n = column.with_input(x)        u = row(h, residual=x)     sums dn over the ranks in its backward
    middle   y, n = column.with_input(n)        u = row(h, partial=u)      no collective
    last     y = column(n)                      y = row(h, partial=u)      sums u over the ranks in its forward

A linear whose input is forgotten after F (recompute.py) gets an `Again` with it and keeps nothing: its backward asks.

Method: Megatron-LM (Shoeybi et al. 2019; Korthikanti et al. 2022 for sequence parallelism).
Shapes: B microbatch, S sequence, T tp_degree, I inputs, O outputs, N = B*S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import (
    Pending,
    start_all_reduce,
    start_gather_sequence,
    start_reduce_scatter_sequence,
)
from hybrid_runtime.pieces import Slice
from hybrid_runtime.tensor_parallel.applied import applied
from hybrid_runtime.tensor_parallel.few_tokens import FEW_TOKENS, product_of_tokens
from hybrid_runtime.tensor_parallel.gradients import bias_gradient, weight_gradient
from hybrid_runtime.tensor_parallel.initialise import Init, draw_normal_, init_from_default_generator
from hybrid_runtime.tensor_parallel.recompute import Again
from hybrid_runtime.tensor_parallel.shard import ShardSpec, split_evenly
from hybrid_runtime.tensor_parallel.weight_product import WeightProduct
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue


class ColumnParallelLinear(nn.Module):
    """y = x W' + b with the outputs split over the axis; y stays split: (B, S, O/T).

    Args:
        in_features: I.
        out_features: O, or several fused outputs (query, key and value; gate and up), each split on its own.
        axis: the tensor-parallel axis.
        replicas: per output, how many neighbouring ranks hold the same piece (key/value heads fewer than ranks).
        padded: round O up to what the ranks divide (vocabularies); the surplus rows are zero.
        sequence_parallel: x is (B, S/T, I); but (B, S, I) from the second piece of a unit on.
        piece: the outputs of these parts of the unit only. From the second piece on, dX is not summed over the ranks.
        init: of the weight; None draws a seed from torch's default generator. Biases start at zero.

    Raises:
        PlanError: the ranks do not divide an output size, or the piece cannot be cut from them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | Sequence[int],
        axis: Axis,
        *,
        bias: bool = False,
        replicas: Sequence[int] | None = None,
        padded: bool = False,
        sequence_parallel: bool = False,
        piece: Slice | None = None,
        init: Init | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = [out_features] if isinstance(out_features, int) else list(out_features)
        segments = split_evenly("output size", sizes, axis, replicas, padded=padded, piece=piece)
        partial = any(segment.replicas > 1 for segment in segments)
        self.axis = axis
        self.sums_gradient = piece is None or piece.is_first
        self.sequence_parallel = sequence_parallel and self.sums_gradient
        self.accumulate_in_place = False
        self.weight_queue: WeightQueue | None = None
        self.sizes = tuple(sizes)
        self.local_sizes = [segment.length for segment in segments]
        self.shards = {
            "weight": ShardSpec(global_shape=(sum(sizes), in_features), dim=0, segments=segments, partial=partial)
        }
        self.weight = nn.Parameter(torch.empty(self.shards["weight"].local_shape, device=device, dtype=dtype))
        draw_normal_(self.weight, self.shards["weight"], init or init_from_default_generator(), "weight")
        self.bias: nn.Parameter | None = None
        if bias:
            spec = ShardSpec(global_shape=(sum(sizes),), dim=0, segments=segments, partial=partial)
            self.shards["bias"] = spec
            self.bias = nn.Parameter(torch.zeros(spec.local_shape, device=device, dtype=dtype))

    def forward(self, x: Tensor, *, again: Again | None = None) -> Tensor:
        """(B, S, I), or (B, S/T, I) with sequence parallelism -> (B, S, O/T).

        Args:
            again: x is its first result and is not kept.
        """
        y: Tensor = applied(_Column, x, self.weight, self.bias, self, False, again)
        return y

    def with_input(self, x: Tensor, *, again: Again | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, and the whole (B, S, I) that it was computed from, for the next piece of the unit.

        The gradient of that comes back as each rank's own part of a sum over the ranks, like dX itself.
        """
        y, whole = applied(_Column, x, self.weight, self.bias, self, True, again)
        return y, whole

    def extra_repr(self) -> str:
        rows, columns = self.shards["weight"].global_shape
        return f"{columns} -> {rows}, here {self.local_sizes}, rank {self.axis.rank} of {self.axis.size}"


class RowParallelLinear(nn.Module):
    """y = sum over ranks of x_t W_t' + b with the inputs split over the axis; y is whole.

    Args:
        in_features: I; each rank's x holds I/T of them.
        out_features: O.
        axis: the tensor-parallel axis.
        bias: added once, after the sum; of a unit's pieces only the last one has it.
        sequence_parallel: y is (B, S/T, O), and the bias' gradient is partial.
        piece: the inputs of these parts of the unit only. Except in the last piece, y is not summed over the ranks: the
            rank's own part of the sum, (B, S, O) with sequence parallelism too.
        init: of the weight; None draws a seed from torch's default generator. The bias starts at zero.

    Raises:
        PlanError: the ranks do not divide the input size, or the piece cannot be cut from it.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axis: Axis,
        *,
        bias: bool = False,
        sequence_parallel: bool = False,
        piece: Slice | None = None,
        init: Init | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        segments = split_evenly("input size", [in_features], axis, piece=piece)
        self.axis = axis
        self.sums_output = piece is None or piece.is_last
        self.sequence_parallel = sequence_parallel
        self.accumulate_in_place = False
        self.weight_queue: WeightQueue | None = None
        self.shards = {"weight": ShardSpec(global_shape=(out_features, in_features), dim=1, segments=segments)}
        self.weight = nn.Parameter(torch.empty(self.shards["weight"].local_shape, device=device, dtype=dtype))
        draw_normal_(self.weight, self.shards["weight"], init or init_from_default_generator(), "weight")
        self.bias: nn.Parameter | None = None
        if bias and self.sums_output:
            self.shards["bias"] = ShardSpec(global_shape=(out_features,), partial=sequence_parallel)
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))

    def forward(
        self,
        x: Tensor,
        *,
        partial: Tensor | None = None,
        residual: Tensor | None = None,
        again: Again | None = None,
    ) -> Tensor:
        """(B, S, I/T) -> (B, S, O), or (B, S/T, O) with sequence parallelism; of all pieces but the last (B, S, O).

        Args:
            partial: (B, S, O), the sum so far of the pieces before this one, as this rank has it.
            residual: added once to the sum over ranks and pieces, in the first of several pieces. (B, S, O) and equal
                on all ranks, or the rank's own (B, S/T, O) with sequence parallelism.
            again: x is its first result and is not kept.
        """
        assert residual is None or (partial is None and not self.sums_output), "a residual is for the first piece"
        addend = partial if residual is None else residual
        y: Tensor = applied(_Row, x, self.weight, self.bias, self, addend, residual is not None, again)
        return y

    def extra_repr(self) -> str:
        rows, columns = self.shards["weight"].global_shape
        return f"{columns} -> {rows}, here {self.weight.shape[1]} inputs, rank {self.axis.rank} of {self.axis.size}"


class _Column(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: ColumnParallelLinear,
        with_input: bool,
        again: Again | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        _keep(ctx, x, again)
        ctx.weight, ctx.bias, ctx.layer = weight, bias, layer  # not saved tensors: backward needs their .grad
        if layer.sequence_parallel:
            x = start_gather_sequence(x, layer.axis).wait()
        y = _linear(x, weight, bias)
        return (y, x) if with_input else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dx_of_others: Tensor | None = None) -> tuple[Tensor | None, ...]:
        x = _kept(ctx)
        layer: ColumnParallelLinear = ctx.layer
        need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
        sharded, queue = layer.sequence_parallel, layer.weight_queue
        if queue is not None and not queue.is_deferring:
            queue = None
        gathering = start_gather_sequence(x, layer.axis) if sharded and need_weight and queue is None else None
        dy_NO = dy.reshape(-1, dy.shape[-1])
        dx: Tensor | None = None
        reducing: Pending | None = None
        if need_x:
            dx = _product(dy_NO, ctx.weight, dx_of_others).view(*dy.shape[:-1], -1)
            if layer.sums_gradient:
                reducing = (start_reduce_scatter_sequence if sharded else start_all_reduce)(dx, layer.axis)
        dw = db = None
        if need_weight and queue is not None:
            queue.push(WeightProduct(layer, ctx.weight, x, dy_NO, layer.axis, "x" if sharded else None))
        elif need_weight:
            x = x if gathering is None else gathering.wait()
            x_NI = x.reshape(-1, x.shape[-1])
            dw = weight_gradient(ctx.weight, x_NI, dy_NO, in_place=layer.accumulate_in_place)
        if need_bias:
            db = bias_gradient(ctx.bias, dy_NO, in_place=layer.accumulate_in_place)
        if reducing is not None:
            dx = reducing.wait() if queue is None else queue.wait(reducing, layer)
        return dx, dw, db, None, None, None


class _Row(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: RowParallelLinear,
        addend: Tensor | None,
        is_residual: bool,
        again: Again | None,
    ) -> Tensor:
        _keep(ctx, x, again)
        ctx.weight, ctx.bias, ctx.layer = weight, bias, layer  # not saved tensors: backward needs their .grad
        ctx.rows = None
        if is_residual and addend is not None and layer.sequence_parallel:  # each rank adds its own tokens
            y = _linear(x, weight, None)
            ctx.rows = slice(layer.axis.rank * addend.shape[1], (layer.axis.rank + 1) * addend.shape[1])
            y[:, ctx.rows].add_(addend)
        else:
            once = None if is_residual and layer.axis.rank > 0 else addend
            x_NI = x.reshape(-1, x.shape[-1])
            y_NO = product_of_tokens(x_NI, weight) if once is None else _product(x_NI, weight.t(), once)
            y = y_NO.view(*x.shape[:-1], -1)
        if layer.sums_output:
            y = (start_reduce_scatter_sequence if layer.sequence_parallel else start_all_reduce)(y, layer.axis).wait()
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x = _kept(ctx)
        layer: RowParallelLinear = ctx.layer
        queue = layer.weight_queue
        need_x, need_weight, need_bias, _, need_addend, *_ = ctx.needs_input_grad
        sharded = layer.sequence_parallel and layer.sums_output
        gathering = start_gather_sequence(dy, layer.axis) if sharded else None
        dx = dw = db = None
        if need_bias:  # of the rank's own tokens only, under sequence parallelism: hence partial
            db = bias_gradient(ctx.bias, dy.reshape(-1, dy.shape[-1]), in_place=layer.accumulate_in_place)
        dy_here = dy
        dy = dy if gathering is None else gathering.wait()
        dy_NO = dy.reshape(-1, dy.shape[-1])
        if need_x:
            dx = dy_NO.mm(ctx.weight).view(x.shape)
        if need_weight and queue is not None and queue.is_deferring:
            if gathering is None:
                queue.push(WeightProduct(layer, ctx.weight, x, dy_NO, layer.axis))
            else:
                queue.push(WeightProduct(layer, ctx.weight, x, dy_here, layer.axis, "dy"))
        elif need_weight:
            x_NI = x.reshape(-1, x.shape[-1])
            dw = weight_gradient(ctx.weight, x_NI, dy_NO, in_place=layer.accumulate_in_place)
        # A residual was added on one rank only, but it is every rank's: its gradient is dY on all of them.
        d_addend = (dy if ctx.rows is None else dy[:, ctx.rows]) if need_addend else None
        return dx, dw, db, None, d_addend, None, None


def _keep(ctx: Any, x: Tensor, again: Again | None) -> None:
    ctx.again = again
    if again is None:
        ctx.save_for_backward(x)


def _kept(ctx: Any) -> Tensor:
    x: Tensor = ctx.saved_tensors[0] if ctx.again is None else ctx.again.result()
    return x


def _product(a_NK: Tensor, b_KM: Tensor, addend: Tensor | None) -> Tensor:
    """a b, or addend + a b in one pass; (N, M)."""
    return a_NK.mm(b_KM) if addend is None else torch.addmm(addend.reshape(-1, addend.shape[-1]), a_NK, b_KM)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One 2-D matmul over all tokens."""
    x_NI = x.reshape(-1, x.shape[-1])
    if bias is not None and len(x_NI) > FEW_TOKENS:
        y_NO = torch.addmm(bias, x_NI, weight.t())
    else:
        y_NO = product_of_tokens(x_NI, weight)
        y_NO = y_NO if bias is None else y_NO.add_(bias)
    return y_NO.view(*x.shape[:-1], y_NO.shape[-1])
