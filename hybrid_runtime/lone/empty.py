"""A model that computes nothing, in stages that the executor runs all the same: what is left is the executor's time."""

from __future__ import annotations

from torch import nn

from hybrid_runtime.models.unit import Carry, Microbatch, UnitSpec

STAGES = 3


class _Start(nn.Module):
    """() -> (x,), of a row and a column."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Embedding(1, 1)

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return (self.x(microbatch.tokens[:, :1] * 0),)


class _Pass(nn.Module):
    """(x,) -> (x,), as a tensor of its own."""

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return (carry[0] * 1,)


class _End(nn.Module):
    """(x,) -> (sum,)."""

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return (carry[0].sum(),)


def units() -> list[UnitSpec]:
    """One unit for each of STAGES stages."""
    return [
        UnitSpec("start", lambda context: _Start()),
        UnitSpec("pass", lambda context: _Pass()),
        UnitSpec("end", lambda context: _End()),
    ]
