"""What a model is to the runtime: a flat list of `UnitSpec`s; a stage builds its slice of that list.

A unit is an `nn.Module` called as `unit(carry, microbatch) -> carry`. The first unit gets an empty carry and reads
`microbatch.tokens`; the last unit returns a one-tensor carry: the **sum** of the per-token losses (a scalar) when
`microbatch.targets` is given, else its logits.

Deploying your own model is writing one function that returns such a list:

    def units(*, width: int = 64) -> list[UnitSpec]:
        return [UnitSpec("embedding", lambda context: MyEmbedding(width, context)),
                UnitSpec("0.block", lambda context: MyBlock(width, context)),
                UnitSpec("head", lambda context: MyHead(width, context))]

A unit that is a sum over equal parts may offer to be cut between them, so that stages can be balanced to a part:
`parts` says how many, and `build` builds what `context.piece` says (`residual.py` does the arithmetic for units of the
form x + f(norm(x))):

        UnitSpec("0.mlp", lambda context: MyMlp(width, context), parts=4 * width)

What pieces hand on to each other is the unit's own affair, as long as the last piece returns what the whole unit
returns. Anything that is not linear in the sum (dropout after it, for example) forbids pieces. Weights must not depend
on the cut: parallel layers take `piece=context.piece` and draw them alike; a plain module draws the whole and keeps its
slice. A unit with a tied weight cannot be cut, and the first and the last one cannot either.

Shapes: B microbatch, S sequence, H hidden, T tp_degree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import Piece, Slice, read_piece
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
        draws: weights are to be random; False where they are read from files, and drawing them would be in vain.
        unit: name of the unit being built; random weights are drawn from (seed, unit, parameter).
        piece: which parts of the unit to build, of a unit that has more than one; None for the whole unit.
        random: the rank's random states, for dropout on sharded activations (`ParallelDropout`); None while costs are
            counted.
    """

    tp: Axis = field(default_factory=Axis)
    sequence_parallel: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0
    draws: bool = True
    unit: str = ""
    piece: Slice | None = None
    random: RandomStates | None = None


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """One unit before it is built.

    Attributes:
        name: unique in the model; stage cuts are written with these names.
        build: makes the module; called only on the ranks that own the unit.
        tied: own parameter name -> (unit, parameter) whose weight it shares. Same weight on another stage: both hold a
            copy that starts equal and whose gradients are summed before every update.
        parts: over how many equal parts the unit is a sum, if `build` can build pieces of it; 1 if it cannot.
    """

    name: str
    build: Callable[[BuildContext], nn.Module]
    tied: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    parts: int = 1


def specs_of(names: Sequence[str], specs: Sequence[UnitSpec]) -> list[UnitSpec]:
    """The specs of a stage's units and pieces, by name and in this order.

    Args:
        names: of units or of pieces (pieces.py).
        specs: of all units of the model.

    Raises:
        PlanError: there is no such unit, or it has no such parts.
    """
    by_name = {spec.name: spec for spec in specs}
    found = []
    for name in names:
        piece = read_piece(name)
        spec = by_name.get(name if piece is None else piece.unit)
        if spec is None:
            raise PlanError(f"the plan has a unit {name!r} that the model lacks; make the plan again for this model")
        found.append(spec if piece is None else _piece_spec(spec, piece))
    return found


def _piece_spec(spec: UnitSpec, piece: Piece) -> UnitSpec:
    if spec.parts == 1 or not 0 <= piece.start < piece.stop <= spec.parts:
        can = "it cannot be cut" if spec.parts == 1 else f"its parts are 0 to {spec.parts}"
        raise PlanError(f"the plan has a piece {str(piece)!r} of unit {spec.name!r}, but {can}; make the plan again")
    part = Slice(piece.start, piece.stop, spec.parts)
    return UnitSpec(str(piece), lambda context: spec.build(replace(context, unit=piece.unit, piece=part)))
