"""Models that a user may get wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch, UnitSpec

NO_FUNCTION = 3


class Embedding(nn.Module):
    def __init__(self, context: BuildContext) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(256, 8, device=context.device))

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return (self.weight[microbatch.tokens],)


class DecidesOnValues(nn.Module):
    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return carry if bool((carry[0] > 0).all()) else ()


class ReturnsATensor(nn.Module):
    def forward(self, carry: Carry, microbatch: Microbatch) -> Tensor:
        return carry[0].sum()


def raises() -> list[UnitSpec]:
    raise KeyError("width")


def garbage() -> object:
    return {"units": 3}


def twice() -> list[UnitSpec]:
    return [UnitSpec("a", Embedding), UnitSpec("a", Embedding)]


def no_module() -> list[UnitSpec]:
    return [UnitSpec("a", lambda context: "a module")]  # type: ignore[arg-type, return-value]


def decides_on_values() -> list[UnitSpec]:
    return [UnitSpec("embedding", Embedding), UnitSpec("gate", lambda context: DecidesOnValues())]


def returns_a_tensor() -> list[UnitSpec]:
    return [UnitSpec("embedding", Embedding), UnitSpec("head", lambda context: ReturnsATensor())]
