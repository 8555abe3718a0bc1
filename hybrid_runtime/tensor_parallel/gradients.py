"""Gradients of parameters made by this package's own layers, and where they go: into `.grad`, or back to autograd."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weight_gradient(weight: Tensor, x_NI: Tensor, dy_NO: Tensor, *, in_place: bool) -> Tensor | None:
    """dW = dY' X: added to `weight.grad` in one GEMM and None returned when in place, else returned."""
    if not in_place:
        return dy_NO.t().mm(x_NI)
    gradient_buffer(weight).addmm_(dy_NO.t(), x_NI)
    return None


def bias_gradient(bias: Tensor, dy_NO: Tensor, *, in_place: bool) -> Tensor | None:
    """The sum of dY over the tokens: added to `bias.grad` and None returned when in place, else returned."""
    if not in_place:
        return dy_NO.sum(0)
    gradient_buffer(bias).add_(dy_NO.sum(0))
    return None


def gradient_buffer(parameter: Tensor) -> Tensor:
    """`parameter.grad`, made of zeros where there is none yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    return parameter.grad


def set_accumulate_in_place(module: nn.Module, on: bool) -> None:
    """Lets every layer of this package inside `module` add to `.grad` itself (True) or return gradients (False).

    In place saves a temporary and a pass per parameter, but hooks on parameters are then not called.
    """
    for layer in module.modules():
        if hasattr(layer, "accumulate_in_place"):
            setattr(layer, "accumulate_in_place", on)  # noqa: B010 - a plain attribute of any of the layers
