"""Rotary positions (Su et al. 2021) in Hugging Face's half-rotation convention, fused with the split into heads.

    fused row    q0 q1 .. | k0 .. | v0 ..      each head is D wide
    rotation     (a, b) -> (a cos - b sin, b cos + a sin)    with a, b the two halves of a q or k head

Llama 3.1 slows the slow rotations down (its `rope_scaling`); computed as Hugging Face does.

Shapes: B microbatch, S sequence, D head_dim, Q query heads and K key (= value) heads on this rank.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid_runtime.models.compiled import compiled as fused_by_compiler
from hybrid_runtime.shapes import RopeScaling


@functools.lru_cache(maxsize=16)
def rotary_tables(
    length: int,
    head_dim: int,
    theta: float,
    device: torch.device,
    dtype: torch.dtype,
    scaling: RopeScaling | None = None,
) -> tuple[Tensor, Tensor]:
    """cos and sin, each (S, 1, D/2), of position times theta^(-2i/D); computed in float32 as Hugging Face does."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is not None:
        frequencies = _slowed(frequencies, scaling)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    return angles.cos().to(dtype).unsqueeze(1), angles.sin().to(dtype).unsqueeze(1)


def _slowed(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow rotations divided by the factor, fast ones as they are, those between them mixed in proportion."""
    factor, low, high, length = scaling
    wavelengths = 2 * math.pi / frequencies
    share = (length / wavelengths - low) / (high - low)
    mixed = (1 - share) * frequencies / factor + share * frequencies
    slow, fast = wavelengths > length / low, wavelengths < length / high
    return torch.where(slow, frequencies / factor, torch.where(fast, frequencies, mixed))


def rotated_heads(
    qkv: Tensor,
    num_q: int,
    num_kv: int,
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    positions: Tensor | None = None,
    *,
    compiled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits fused (B, S, (Q+2K)*D) into q (B, Q, S, D), k and v (B, K, S, D), with q and k rotated.

    Args:
        positions: (B, S) of every token, each below S; None for 0, 1, 2, ... in every sequence.
        compiled: rotations are fused by torch.compile.
    """
    cos, sin = rotary_tables(qkv.shape[1], head_dim, theta, qkv.device, qkv.dtype, scaling)
    q, k, v = _RotatedHeads.apply(qkv, cos, sin, positions, num_q, num_kv, compiled)  # type: ignore[no-untyped-call]
    return q, k, v


def rotated(heads_NhD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads of single tokens turned: (N, heads, D), with the tables' rows of each token's position, (N, 1, D/2)."""
    out = torch.empty_like(heads_NhD, memory_format=torch.contiguous_format)
    _rotate(heads_NhD, out, cos, sin)
    return out


class _RotatedHeads(torch.autograd.Function):
    """One pass over memory each way; the only things kept for backward are the shared tables and positions."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor | None,
        num_q: int,
        num_kv: int,
        fused: bool,
    ) -> tuple[Tensor, ...]:
        ctx.cos, ctx.sin, ctx.positions, ctx.fused = cos, sin, positions, fused
        cos, sin = _at(positions, cos, sin)
        heads_BShD = qkv.view(*qkv.shape[:2], num_q + 2 * num_kv, -1)
        turned = num_q + num_kv
        if fused:
            out = fused_by_compiler(_rotated)(heads_BShD, cos, sin, turned)
        else:
            out = torch.empty_like(heads_BShD)
            _rotate(heads_BShD[:, :, :turned], out[:, :, :turned], cos, sin)
            out[:, :, turned:] = heads_BShD[:, :, turned:]
        q, k, v = out.transpose(1, 2).split_with_sizes([num_q, num_kv, num_kv], dim=1)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        num_q, num_kv = dq.shape[1], dk.shape[1]
        batch, _, length, head_dim = dq.shape
        cos, sin = _at(ctx.positions, ctx.cos, ctx.sin)
        if ctx.fused:
            gradients_BShD = torch.cat([dq, dk, dv], 1).transpose(1, 2)
            turned_back = fused_by_compiler(_rotated)(gradients_BShD, cos, -sin, num_q + num_kv)
            return turned_back.flatten(2), None, None, None, None, None, None
        out = dq.new_empty(batch, length, num_q + 2 * num_kv, head_dim)
        into_q, into_k, into_v = out.split_with_sizes([num_q, num_kv, num_kv], dim=2)
        _rotate(dq.transpose(1, 2), into_q, cos, -sin)  # the inverse rotation
        _rotate(dk.transpose(1, 2), into_k, cos, -sin)
        into_v.copy_(dv.transpose(1, 2))
        return out.flatten(2), None, None, None, None, None, None


def _at(positions: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the tables for every token, (B, S, 1, D/2); the tables themselves where tokens are in order."""
    return (cos, sin) if positions is None else (cos[positions], sin[positions])


def _rotated(heads_BShD: Tensor, cos: Tensor, sin: Tensor, turned: int) -> Tensor:
    """All heads, the first `turned` of them rotated: a pure formula."""
    a, b = heads_BShD[:, :, :turned].chunk(2, -1)
    return torch.cat([torch.cat([a * cos - b * sin, b * cos + a * sin], -1), heads_BShD[:, :, turned:]], 2)


def _rotate(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor) -> None:
    a, b = x.chunk(2, -1)
    out_a, out_b = out.chunk(2, -1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin)
