"""What a model is to the runtime: a flat list of `UnitSpec`s; a stage builds its slice of that list.

A unit is an `nn.Module` called as `unit(carry, microbatch) -> carry`. The first unit gets an empty carry and reads
`microbatch.tokens`; the last unit returns a one-tensor carry: the **sum** of the per-token losses (a scalar) when
`microbatch.targets` is given, else its logits.

Deploying your own model is writing one function that returns such a list:

    def units(*, width: int = 64) -> list[UnitSpec]:
        return [UnitSpec("embedding", lambda context: MyEmbedding(width, context)),
                UnitSpec("0.block", lambda context: MyBlock(width, context)),
                UnitSpec("head", lambda context: MyHead(width, context))]

Shapes: B microbatch, S sequence, H hidden, T tp_degree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.tensor_parallel.random_state import RandomStates

Carry = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Microbatch:
    """The inputs of one microbatch, on the stage's device.

    Attributes:
        tokens: (B, S) int64 token ids.
        targets: (B, S) int64 next-token ids, or None when only logits are wanted.
    """

    tokens: Tensor
    targets: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """What a unit may know when it is built.

    Attributes:
        tp: the tensor-parallel axis.
        sequence_parallel: activations between tensor-parallel regions are sharded over the sequence, (B, S/T, H).
        device: where parameters live ("meta" while costs are counted).
        dtype: of parameters and activations.
        seed: same seed, same initial weights on every mesh.
        unit: name of the unit being built; random weights are drawn from (seed, unit, parameter).
        random: the rank's random states, for dropout on sharded activations (`ParallelDropout`); None while costs are
            counted.
    """

    tp: Axis = field(default_factory=Axis)
    sequence_parallel: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0
    unit: str = ""
    random: RandomStates | None = None


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """One unit before it is built.

    Attributes:
        name: unique in the model; stage cuts are written with these names.
        build: makes the module; called only on the ranks that own the unit.
        tied: own parameter name -> (unit, parameter) whose weight it shares. Same weight on another stage: both hold a
            copy that starts equal and whose gradients are summed before every update.
    """

    name: str
    build: Callable[[BuildContext], nn.Module]
    tied: Mapping[str, tuple[str, str]] = field(default_factory=dict)
