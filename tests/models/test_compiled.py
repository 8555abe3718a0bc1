"""What torch.compile makes of the functions between parallel layers: same results, and the same kept for backward."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.compiled import refuse_without_compiler
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.rms_norm import RMSNorm
from hybrid_runtime.models.rotary import rotated_heads
from hybrid_runtime.models.swiglu import compiled_swiglu, swiglu
from hybrid_runtime.models.unit import BuildContext
from hybrid_runtime.shapes import PRESETS

Function = Callable[[Tensor], Tensor | tuple[Tensor, ...]]


def results(function: Function, x: Tensor) -> tuple[list[Tensor], list[tuple[int, ...]]]:
    """Outputs and the gradient of x; and the shapes of what was kept for the backward."""
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = function(leaf)
    outputs = y if isinstance(y, tuple) else (y,)
    torch.autograd.backward(outputs, [torch.cos(output.detach()) for output in outputs])
    assert leaf.grad is not None
    return [*outputs, leaf.grad], kept


def assert_same(plain: Function, fused: Function, x: Tensor) -> None:
    """Bfloat16 to a few of its roundings: fused operations round once, at their end."""
    (expected, kept), (found, kept_too) = results(plain, x), results(fused, x)
    apart = {"atol": 0.03, "rtol": 0.02} if x.dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, expected, **apart)
    assert kept_too == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu(dtype: torch.dtype) -> None:
    assert_same(swiglu, compiled_swiglu, torch.randn(2, 5, 12, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_in_place(dtype: torch.dtype) -> None:
    """Of a bfloat16 weight the gradient is float32, as with master weights: a leaf that the compiler would refuse."""
    x = torch.randn(2, 5, 16, dtype=dtype)
    norms = [RMSNorm(16, 1e-5, compiled=compiled, dtype=dtype) for compiled in (False, True)]
    for norm in norms:
        norm.accumulate_in_place = True
        norm.weight.grad_dtype = torch.float32
        norm.weight.grad = torch.ones(16)
    assert_same(*norms, x)
    apart = {"atol": 0.1, "rtol": 0.02} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(norms[1].weight.grad, norms[0].weight.grad, **apart)


@pytest.mark.parametrize("packed", [False, True])
def test_rotary(packed: bool) -> None:
    positions = torch.tensor([[0, 1, 0, 1, 2]]) if packed else None
    plain, fused = (
        lambda x, compiled=compiled: rotated_heads(x, 4, 2, 8, 100.0, None, positions, compiled=compiled)
        for compiled in (False, True)
    )
    assert_same(plain, fused, torch.randn(1, 5, 8 * 8))


def test_no_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "my-c++")
    with pytest.raises(EnvironmentProblem, match=r"none of my-c\+\+, g\+\+, clang\+\+ is on the PATH"):
        build_units(llama_units(PRESETS["tiny"])[:1], BuildContext(compiled=True))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="needs triton"):
        refuse_without_compiler(torch.device("cuda"))
