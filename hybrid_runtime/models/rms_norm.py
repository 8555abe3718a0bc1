"""Root-mean-square normalisation (Zhang and Sennrich 2019) with an in-place weight gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hybrid_runtime.models.compiled import compiled
from hybrid_runtime.tensor_parallel.applied import applied
from hybrid_runtime.tensor_parallel.gradients import gradient_buffer
from hybrid_runtime.tensor_parallel.shard import ShardSpec


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dim; float32 inside (float64 for float64).

    Every tensor-parallel rank holds the whole weight.

    Args:
        compiled: forward and backward are fused by torch.compile.
        partial: each rank norms only some of the rows (with sequence parallelism its own tokens, or its own heads), so
            its gradient of the weight is a part of a sum.
    """

    def __init__(
        self,
        size: int,
        eps: float,
        *,
        partial: bool = False,
        compiled: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.compiled = compiled
        self.accumulate_in_place = False
        self.shards = {"weight": ShardSpec(global_shape=(size,), partial=partial)}
        self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (..., H) -> same shape."""
        y: Tensor = applied(_RMSNorm, x, self.weight, self)
        return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: RMSNorm) -> Tensor:
        if layer.compiled and not torch.is_inference_mode_enabled():  # lengths of requests would each be compiled for
            ctx.weight, ctx.layer = weight, layer
            # Detached: the compiler looks at a leaf's gradient, and refuses one that is float32 beside bfloat16.
            y, scale = compiled(_forward)(x, weight.detach(), layer.eps)
            ctx.save_for_backward(x, scale)
            return y  # type: ignore[no-any-return]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().mul_(1 / x.shape[-1]).add_(layer.eps).rsqrt_()
        ctx.save_for_backward(x, scale)
        ctx.weight, ctx.layer = weight, layer  # not a saved tensor: backward needs its .grad
        normed: Tensor = (wide * scale).to(x.dtype)
        return normed.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, scale = ctx.saved_tensors
        need_x, need_weight, _ = ctx.needs_input_grad
        if ctx.layer.compiled:
            dx, dw = compiled(_backward)(x, scale, ctx.weight.detach(), dy)
            return dx if need_x else None, _kept(dw, ctx) if need_weight else None, None
        # with n = x * scale:  dW = sum over tokens of dy n,  dx = scale * (dy W - n * mean(dy W n))
        normed = x * scale
        product = dy * normed
        dx = dw = None
        if need_x:
            wide_weight = ctx.weight.to(scale.dtype)
            projection = (product @ wide_weight).div_(x.shape[-1]).unsqueeze(-1)
            dx = (dy * wide_weight).addcmul_(normed, projection, value=-1).mul_(scale).to(x.dtype)
        if need_weight:
            dw = _kept(product.flatten(0, -2).sum(0), ctx)
        return dx, dw, None


def _kept(dw: Tensor, ctx: Any) -> Tensor | None:
    """The gradient of the weight for autograd; None where it was added to the rank's buffer."""
    if ctx.layer.accumulate_in_place:
        gradient_buffer(ctx.weight).add_(dw)
        return None
    return dw.to(ctx.weight.dtype)


def _forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight, scale


def _backward(x: Tensor, scale: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    normed, wide_weight = x * scale, weight.to(scale.dtype)
    product = dy * normed
    projection = (product * wide_weight).mean(-1, keepdim=True)
    dx = ((dy * wide_weight - normed * projection) * scale).to(x.dtype)
    return dx, product.flatten(0, -2).sum(0)
