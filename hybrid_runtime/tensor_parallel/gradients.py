"""Gradients of parameters made by this package's own layers, and where they go: into `.grad`, or back to autograd.

A `.grad` may be wider than its parameter (float32 over bfloat16, `Tensor.grad_dtype`): microbatches are then summed in
float32. A GPU's matrix units add into float32 directly; a CPU rounds one microbatch's product to bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weight_gradient(weight: Tensor, x_NI: Tensor, dy_NO: Tensor, *, in_place: bool) -> Tensor | None:
    """dW = dY' X: added to `weight.grad` in one GEMM and None returned when in place, else returned."""
    if not in_place:
        return dy_NO.t().mm(x_NI)
    buffer = gradient_buffer(weight)
    if buffer.dtype == x_NI.dtype:
        buffer.addmm_(dy_NO.t(), x_NI)
    elif buffer.is_cuda:
        torch.addmm(buffer, dy_NO.t(), x_NI, out_dtype=buffer.dtype, out=buffer)
    else:
        buffer.add_(dy_NO.t().mm(x_NI))
    return None


def bias_gradient(bias: Tensor, dy_NO: Tensor, *, in_place: bool) -> Tensor | None:
    """The sum of dY over the tokens: added to `bias.grad` and None returned when in place, else returned."""
    if not in_place:
        return dy_NO.sum(0)
    buffer = gradient_buffer(bias)
    buffer.add_(dy_NO.sum(0, dtype=buffer.dtype))
    return None


def gradient_dtype(parameter: Tensor) -> torch.dtype:
    """Of the parameter's gradient: its own, unless it was given another (`GradientBuckets`)."""
    return parameter.grad_dtype or parameter.dtype


def gradient_buffer(parameter: Tensor) -> Tensor:
    """`parameter.grad`, made of zeros where there is none yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(
            parameter, dtype=gradient_dtype(parameter), memory_format=torch.contiguous_format
        )
    return parameter.grad


def set_accumulate_in_place(module: nn.Module, on: bool) -> None:
    """Lets every layer of this package inside `module` add to `.grad` itself (True) or return gradients (False).

    In place saves a temporary and a pass per parameter, but hooks on parameters are then not called.
    """
    for layer in module.modules():
        if hasattr(layer, "accumulate_in_place"):
            setattr(layer, "accumulate_in_place", on)  # noqa: B010 - a plain attribute of any of the layers
