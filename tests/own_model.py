"""A user's own model, written as a user would: plain modules, a list of units, nothing of the runtime but two names.

[model]
units = "tests.own_model:units"
options = { width = 48 }
"""

import torch
from torch import nn
from torch.nn import functional as F

from hybrid_runtime.models.unit import UnitSpec


class Embedding(nn.Module):
    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)

    def forward(self, carry, microbatch):  # type: ignore[no-untyped-def]
        return (self.table(microbatch.tokens),)


class Block(nn.Module):
    """Mixes every token with the one before it; no attention needed to learn something about text."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(2 * width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, carry, microbatch):  # type: ignore[no-untyped-def]
        (x,) = carry
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        pair = torch.cat([self.norm(x), self.norm(before)], dim=-1)
        return (x + self.down(F.gelu(self.up(pair))),)


class Head(nn.Module):
    """Returns the sum of the token losses, or the logits where there are no targets."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, vocab_size)

    def forward(self, carry, microbatch):  # type: ignore[no-untyped-def]
        logits = self.project(carry[0])
        if microbatch.targets is None:
            return (logits,)
        return (F.cross_entropy(logits.flatten(0, 1), microbatch.targets.flatten(), reduction="sum"),)


def units(vocab_size: int = 256, width: int = 48, num_blocks: int = 3, tied: bool = False) -> list[UnitSpec]:
    blocks = [UnitSpec(f"{k}.block", lambda context: Block(width)) for k in range(num_blocks)]
    return [
        UnitSpec("embedding", lambda context: Embedding(vocab_size, width)),
        *blocks,
        UnitSpec(
            "head",
            lambda context: Head(vocab_size, width),
            tied={"project.weight": ("embedding", "table.weight")} if tied else {},
        ),
    ]
