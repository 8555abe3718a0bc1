"""RMSNorm, rotary positions and SwiGLU against textbook formulas and finite differences."""

from __future__ import annotations

import torch
from torch import Tensor

from hybrid_runtime.models.rms_norm import RMSNorm
from hybrid_runtime.models.rotary import rotary_tables, rotated_heads
from hybrid_runtime.models.swiglu import swiglu

CPU = torch.device("cpu")


def test_rms_norm() -> None:
    norm = RMSNorm(6, 1e-3, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 6))
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.rms_norm(x, (6,), norm.weight, 1e-3)
    torch.testing.assert_close(norm(x), expected)
    dy = torch.randn_like(x)
    dx, dw = torch.autograd.grad(expected, (x, norm.weight), dy)
    torch.testing.assert_close(torch.autograd.grad(norm(x), (x, norm.weight), dy), (dx, dw))
    norm.accumulate_in_place = True
    for _ in range(2):
        torch.autograd.backward(norm(x), dy)
    torch.testing.assert_close(norm.weight.grad, 2 * dw)
    torch.testing.assert_close(x.grad, 2 * dx)
    half = RMSNorm(6, 1e-3, dtype=torch.bfloat16)(x.detach().bfloat16())
    assert half.dtype == torch.bfloat16


def test_swiglu() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(swiglu(x), gate.sigmoid() * gate * up)
    assert torch.autograd.gradcheck(swiglu, (x,))


def test_rotary_positions_turn_pairs_of_halves() -> None:
    num_q, num_kv, head_dim, length = 3, 1, 4, 5
    qkv = torch.randn(2, length, (num_q + 2 * num_kv) * head_dim, dtype=torch.float64, requires_grad=True)
    q, k, v = rotated_heads(qkv, num_q, num_kv, head_dim, 100.0)
    heads = qkv.detach().view(2, length, 5, head_dim).transpose(1, 2)
    torch.testing.assert_close(torch.cat((q, k), 1), _turned(heads[:, :4]), atol=1e-6, rtol=1e-6)
    assert torch.equal(v, heads[:, 4:])

    def joined(x: Tensor) -> Tensor:
        return torch.cat(rotated_heads(x, num_q, num_kv, head_dim, 100.0), 1)

    assert torch.autograd.gradcheck(joined, (qkv,))
    tables = rotary_tables(length, head_dim, 100.0, CPU, torch.float64)
    assert rotary_tables(length, head_dim, 100.0, CPU, torch.float64)[0] is tables[0], "computed once"


def _turned(x_BhSD: Tensor) -> Tensor:
    """Each (i, i + D/2) pair as a complex number, multiplied by exp(i * position * theta^(-2i/D))."""
    length, head_dim = x_BhSD.shape[2:]
    pairs = torch.complex(*x_BhSD.chunk(2, -1))
    frequencies = torch.tensor([100.0 ** (-2 * i / head_dim) for i in range(head_dim // 2)], dtype=torch.float64)
    angles = torch.arange(length)[:, None] * frequencies
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)
