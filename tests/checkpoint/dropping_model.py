"""A user's own model with everything that a checkpoint must bring back: dropout from both streams, and a buffer."""

from __future__ import annotations

import torch
from torch import nn

from hybrid_runtime.models.unit import BuildContext, UnitSpec
from hybrid_runtime.tensor_parallel.random_state import ParallelDropout
from tests.own_model import Block, Embedding, Head

WIDTH = 16


class DroppingBlock(Block):
    """Drops with both streams, and counts its calls, which its output depends on."""

    calls: torch.Tensor

    def __init__(self, context: BuildContext) -> None:
        super().__init__(WIDTH)
        self.shared = nn.Dropout(0.2)
        states = context.random
        self.own = nn.Identity() if states is None else ParallelDropout(0.1, states, sharded=True)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("scratch", torch.zeros(WIDTH), persistent=False)

    def forward(self, carry, microbatch):  # type: ignore[no-untyped-def]
        (x,) = super().forward(carry, microbatch)
        self.calls = self.calls + 1  # a new tensor in its place
        return (self.own(self.shared(x)) / (1 + 0.01 * self.calls),)


def units(vocab_size: int = 50) -> list[UnitSpec]:
    return [
        UnitSpec("embedding", lambda context: Embedding(vocab_size, WIDTH)),
        UnitSpec("0.block", DroppingBlock),
        UnitSpec("head", lambda context: Head(vocab_size, WIDTH)),
    ]
