"""A user's own model, written as a user would: plain modules, a list of units, nothing of the runtime but two names.

[model]
units = "tests.own_model:units"
options = { width = 48 }
"""

import torch
from torch import nn
from torch.nn import functional as F

from hybrid_runtime.models.unit import ShardedRows, UnitSpec


class Embedding(nn.Module):
    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)

    def forward(self, carry, microbatch):  # type: ignore[no-untyped-def]
        return (self.table(microbatch.tokens),)


class EmbeddingRows(nn.Module):
    """Rows start..stop of the table: drawn whole, so that they are the same wherever they lie."""

    def __init__(self, vocab_size: int, width: int, start: int, stop: int) -> None:
        super().__init__()
        whole = nn.Embedding(vocab_size, width)
        self.start, self.num_rows = start, stop - start
        self.table = nn.Embedding.from_pretrained(whole.weight.detach()[start:stop].clone(), freeze=False)

    def forward(self, carry, microbatch):  # type: ignore[no-untyped-def]
        rows = microbatch.tokens - self.start
        here = (rows >= 0) & (rows < self.num_rows)
        return (self.table(rows.where(here, 0)) * here.unsqueeze(-1),)


class Sum(nn.Module):
    """What is left of the embedding on the first stage: nothing, without tensor parallelism."""

    def forward(self, carry, microbatch):  # type: ignore[no-untyped-def]
        return carry


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
    rows = ShardedRows(
        vocab_size,
        lambda context, start, stop: EmbeddingRows(vocab_size, width, start, stop),
        lambda context: Sum(),
    )
    blocks = [UnitSpec(f"{k}.block", lambda context: Block(width)) for k in range(num_blocks)]
    return [
        UnitSpec("embedding", lambda context: Embedding(vocab_size, width), rows=rows),
        *blocks,
        UnitSpec(
            "head",
            lambda context: Head(vocab_size, width),
            tied={"project.weight": ("embedding", "table.weight")} if tied else {},
        ),
    ]
