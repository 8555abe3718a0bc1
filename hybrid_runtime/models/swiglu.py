"""SwiGLU (Shazeer 2020): y = silu(gate) * up, keeping only the fused gate-up activations for backward.

Written twice: with a buffer reused where operations run one by one, and as a pure formula that torch.compile fuses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid_runtime.models.compiled import compiled
from hybrid_runtime.tensor_parallel.applied import applied


def swiglu(gate_up: Tensor) -> Tensor:
    """(..., 2F) with the gate first -> (..., F)."""
    y: Tensor = applied(_SwiGLU, gate_up, False)
    return y


def compiled_swiglu(gate_up: Tensor) -> Tensor:
    """The same, compiled; not where requests are served, whose lengths would each be compiled for."""
    y: Tensor = applied(_SwiGLU, gate_up, not torch.is_inference_mode_enabled())
    return y


def _forward(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def _backward(gate_up: Tensor, dy: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    share = torch.sigmoid(gate)
    return torch.cat([dy * up * share * (1 + gate * (1 - share)), dy * gate * share], -1)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, fused: bool) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.fused = fused
        if fused:
            y: Tensor = compiled(_forward)(gate_up)
            return y
        gate, up = gate_up.chunk(2, -1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        if ctx.fused:
            return compiled(_backward)(gate_up, dy), None
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        d_gate, d_up = out.chunk(2, -1)
        torch.mul(torch.nn.functional.silu(gate), dy, out=d_up)
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=d_gate)
        return out, None
