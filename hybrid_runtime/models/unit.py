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
from hybrid_runtime.models.cached_rows import CachedRows
from hybrid_runtime.pieces import Piece, Slice, read_piece
from hybrid_runtime.tensor_parallel.random_state import RandomStates

Carry = tuple[Tensor, ...]


NO_TARGET = -100  # instead of an id where nothing is to be predicted; torch's cross_entropy leaves it out by itself


@dataclass(frozen=True, slots=True)
class Documents:
    """Where the documents of a packed microbatch lie: a token may see those before it in its own document only.

    Attributes:
        positions: (B, S) int64, of every token in its document.
        lengths: tokens of each document, sequence by sequence; none reaches over the end of a sequence.
        bounds: (documents + 1,) int32, where they begin in the B*S tokens, and B*S; on the device of `positions`.
    """

    positions: Tensor
    lengths: tuple[int, ...]
    bounds: Tensor


@dataclass(frozen=True, slots=True)
class Microbatch:
    """The inputs of one microbatch, on the stage's device.

    Attributes:
        tokens: (B, S) int64 token ids.
        targets: (B, S) int64 next-token ids, NO_TARGET where there is none; None when only logits are wanted.
        documents: None where every sequence is one.
        cached: of an item that is served: where its rows lie in tokens and carry, both (1, N, ...), and in the caches.
            The first stage alone has its tokens then. The last unit returns logits of the rows' last tokens.
    """

    tokens: Tensor
    targets: Tensor | None = None
    documents: Documents | None = None
    cached: CachedRows | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """What a unit may know when it is built.

    Attributes:
        tp: the tensor-parallel axis.
        sequence_parallel: activations between tensor-parallel regions are sharded over the sequence, (B, S/T, H).
        device: where parameters live ("meta" while costs are counted).
        dtype: of parameters and activations.
        compiled: what lies between parallel layers is to be handed to torch.compile.
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
    compiled: bool = False
    seed: int = 0
    draws: bool = True
    unit: str = ""
    piece: Slice | None = None
    random: RandomStates | None = None


@dataclass(frozen=True, slots=True)
class ShardedRows:
    """How a first unit is built when the rows of its weight are spread over the pipeline ranks.

    Attributes:
        count: rows of the weight, not padded.
        build: makes rows start..stop (of the weight padded to a multiple of tp_degree, the same slice of every tensor
            rank's share): a module that is called as the unit is, with an empty carry, and returns one tensor, alike on
            all ranks in shape and type, with zeros where a token's row is not among its own. Its parameter has the name
            that it has in the whole unit. If that weight is tied, the module has `share_rows(weight, spec, first)`:
            from then on its rows are those from `first` on of another unit's weight with that `ShardSpec` (None for
            plain modules), which gets the values of its own.
        rest: makes what stage 0 then runs instead of the unit: called with the ranks' sum as its carry, it returns what
            the unit would. Its method `zeros(tokens)` makes the sum of no rows at all.
    """

    count: int
    build: Callable[[BuildContext, int, int], nn.Module]
    rest: Callable[[BuildContext], nn.Module]


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """One unit before it is built.

    Attributes:
        name: unique in the model; stage cuts are written with these names.
        build: makes the module; called only on the ranks that own the unit.
        tied: own parameter name -> (unit, parameter) whose weight it shares. Same weight on another stage: both hold a
            copy that starts equal and whose gradients are summed before every update.
        parts: over how many equal parts the unit is a sum, if `build` can build pieces of it; 1 if it cannot.
        rows: of a first unit that can be sharded by rows (`pipeline.embedding_rows`); None if it cannot.
        packs: the unit works token by token, or keeps `microbatch.documents` apart: what `data.pack` demands of all.
    """

    name: str
    build: Callable[[BuildContext], nn.Module]
    tied: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    parts: int = 1
    rows: ShardedRows | None = None
    packs: bool = False


def refuse_unpackable(specs: Sequence[UnitSpec]) -> None:
    """Whether packed documents stay apart in all units.

    Raises:
        PlanError: a unit does not say so.
    """
    other = next((spec.name for spec in specs if not spec.packs), None)
    if other is not None:
        raise PlanError(
            f"[data] pack = true, but unit {other!r} does not say that it keeps documents apart; let it heed "
            "microbatch.documents and give its UnitSpec packs=True, or set pack = false"
        )


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
        piece = None if name in by_name else read_piece(name)
        spec = by_name.get(name if piece is None else piece.unit)
        if spec is None:
            raise PlanError(f"the plan has a unit {name!r} that the model lacks; make the plan again for this model")
        found.append(spec if piece is None else _piece_spec(spec, piece))
    return found


def _piece_spec(spec: UnitSpec, piece: Piece) -> UnitSpec:
    if not 0 <= piece.start < piece.stop <= spec.parts or spec.parts == 1:
        can = "it cannot be cut" if spec.parts <= 1 else f"its parts are 0 to {spec.parts}"
        raise PlanError(f"the plan has a piece {str(piece)!r} of unit {spec.name!r}, but {can}; make the plan again")
    part = Slice(piece.start, piece.stop, spec.parts)
    return UnitSpec(str(piece), lambda context: spec.build(replace(context, unit=piece.unit, piece=part)))


def sharded_specs(specs: Sequence[UnitSpec], pieces: Sequence[str], pp_rank: int) -> list[UnitSpec]:
    """The model's units with the first one sharded by rows: what is left of it, and the rows of this pipeline rank.

    Args:
        pieces: per pipeline rank, its rows as a piece (pieces.py), "" for none; empty if the unit is not sharded.

    Raises:
        PlanError: the first unit cannot be sharded.
    """
    if not pieces:
        return list(specs)
    first, rows = specs[0], specs[0].rows
    if rows is None:
        raise PlanError(
            f"unit {first.name!r} cannot be sharded by rows; leave pipeline.embedding_rows out, or give its UnitSpec "
            "`rows`"
        )
    mine = read_piece(pieces[pp_rank])
    rest = UnitSpec(first.name, rows.rest)
    if mine is None:  # nothing here is tied to
        return [rest, *(replace(spec, tied=_tied_to_others(spec, first.name)) for spec in specs[1:])]
    return [rest, *specs[1:], _rows_spec(rows, mine)]  # behind the head, whose weight they may share


def _tied_to_others(spec: UnitSpec, unit: str) -> dict[str, tuple[str, str]]:
    return {own: target for own, target in spec.tied.items() if target[0] != unit}


def _rows_spec(rows: ShardedRows, piece: Piece) -> UnitSpec:
    return UnitSpec(str(piece), lambda context: rows.build(context, piece.start, piece.stop))
