"""What the multi-rank tests cannot show about the loss."""

from __future__ import annotations

import pytest
import torch

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy


def test_overwriting_logits_that_somebody_still_needs_is_noticed() -> None:
    logits = torch.randn(1, 3, 5, requires_grad=True)
    targets = torch.tensor([[0, 4, 2]])
    losses = vocab_parallel_cross_entropy(logits.exp(), targets, 5, Axis(), overwrite_logits=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(losses.sum())  # exp needs its output, which is now something else


def test_a_second_backward_is_refused_and_not_wrong() -> None:
    logits = torch.randn(1, 3, 5, requires_grad=True)
    loss = vocab_parallel_cross_entropy(logits, torch.tensor([[0, 4, 2]]), 5, Axis()).sum()
    torch.autograd.backward(loss, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)
