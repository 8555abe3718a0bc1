"""A user's own unit that may be cut, with plain modules: the README's recipe, written down.

[model]
units = "tests.own_pieces:units"
"""

import torch
from torch import nn

from hybrid_runtime.models.unit import BuildContext, UnitSpec
from hybrid_runtime.tensor_parallel.shard import Segment, ShardSpec
from tests.own_model import Block, Embedding, Head


class Mlp(nn.Module):
    """x + down(tanh(up(norm(x)))), or the hidden neurons piece.start .. piece.stop of it. For tp_degree 1.

    First piece: (x,) -> (u, n) with u = x + its part of the sum. Others: (u, n) -> (u, n). Last: -> (x + sum,).
    """

    def __init__(self, width: int, context: BuildContext) -> None:
        super().__init__()
        self.piece = context.piece
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width, bias=False)
        if self.piece is not None:  # drawn whole, so that the weights do not depend on the cut
            start, stop, _ = self.piece
            self.norm = self.norm if self.piece.is_first else None
            self.up.weight, self.up.bias = (nn.Parameter(p[start:stop]) for p in (self.up.weight, self.up.bias))
            self.down.weight = nn.Parameter(self.down.weight[:, start:stop])
            held = (Segment(start, stop - start),)  # where the slices lie in the whole, for whoever joins them again
            self.up.shards = {
                "weight": ShardSpec(global_shape=(4 * width, width), dim=0, segments=held),
                "bias": ShardSpec(global_shape=(4 * width,), dim=0, segments=held),
            }
            self.down.shards = {"weight": ShardSpec(global_shape=(width, 4 * width), dim=1, segments=held)}

    def forward(self, carry, microbatch):  # type: ignore[no-untyped-def]
        u, n = (carry[0], self.norm(carry[0])) if self.norm is not None else carry
        u = u + self.down(torch.tanh(self.up(n)))
        return (u,) if self.piece is None or self.piece.is_last else (u, n)


def units(vocab_size: int = 256, width: int = 48) -> list[UnitSpec]:
    return [
        UnitSpec("embedding", lambda context: Embedding(vocab_size, width)),
        UnitSpec("0.block", lambda context: Block(width)),
        UnitSpec("0.mlp", lambda context: Mlp(width, context), parts=4 * width),
        UnitSpec("head", lambda context: Head(vocab_size, width)),
    ]
