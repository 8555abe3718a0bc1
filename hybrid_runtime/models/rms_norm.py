"""Root-mean-square normalisation (Zhang and Sennrich 2019) with an in-place weight gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hybrid_runtime.tensor_parallel.applied import applied
from hybrid_runtime.tensor_parallel.gradients import gradient_buffer
from hybrid_runtime.tensor_parallel.shard import ShardSpec


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dim; float32 inside (float64 for float64).

    Every tensor-parallel rank holds the whole weight.

    Args:
        partial: each rank norms only some of the rows (with sequence parallelism its own tokens, or its own heads), so
            its gradient of the weight is a part of a sum.
    """

    def __init__(
        self,
        size: int,
        eps: float,
        *,
        partial: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
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
        # with n = x * scale:  dW = sum over tokens of dy n,  dx = scale * (dy W - n * mean(dy W n))
        normed = x * scale
        product = dy * normed
        dx = dw = None
        if need_x:
            wide_weight = ctx.weight.to(scale.dtype)
            projection = (product @ wide_weight).div_(x.shape[-1]).unsqueeze(-1)
            dx = (dy * wide_weight).addcmul_(normed, projection, value=-1).mul_(scale).to(x.dtype)
        if need_weight:
            dw = product.flatten(0, -2).sum(0)
            if ctx.layer.accumulate_in_place:
                gradient_buffer(ctx.weight).add_(dw)
                dw = None
            else:
                dw = dw.to(ctx.weight.dtype)
        return dx, dw, None
