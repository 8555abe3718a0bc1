"""Autograd functions where there is no autograd.

In inference mode, `Function.apply` takes longer than a norm or a small product does, and keeps what no backward will
ask for. There the function's forward runs alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _NoBackward:
    """A context whose saved tensors nobody reads."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        return None


def applied(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)`."""
    if torch.is_inference_mode_enabled():
        return function.forward(_NoBackward(), *arguments)
    return function.apply(*arguments)  # type: ignore[no-untyped-call]
