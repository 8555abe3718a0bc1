"""Pieces of units: a unit that is a sum over equal parts may be cut between any two of them.

    3.mlp              the whole unit
    3.mlp[0:96]        its first 96 parts: of an MLP, intermediate neurons
    3.mlp[96:256]      the others, on a later stage
    3.attn[0:2]        of an attention, key/value heads with their query heads
    embedding[0:128]   of an embedding, rows (of a vocabulary padded to what the ranks divide)

Parts are counted over the whole model. Each of T tensor-parallel ranks holds parts/T of a whole unit, and of a piece
[a:b] its own parts a/T .. b/T: so a piece is the same slice of every rank's shard, and a and b are multiples of T.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PIECE = re.compile(r"(?P<unit>[^\[\]]+)\[(?P<start>\d{1,12}):(?P<stop>\d{1,12})\]")


class Piece(NamedTuple):
    """Parts start .. stop (stop not included) of a unit."""

    unit: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.unit}[{self.start}:{self.stop}]"

    @property
    def parts(self) -> int:
        return self.stop - self.start


class Slice(NamedTuple):
    """Parts start .. stop of the `parts` of a whole unit: what the builder of a piece needs to know."""

    start: int
    stop: int
    parts: int

    @property
    def is_first(self) -> bool:
        """Nothing of the unit runs before it."""
        return self.start == 0

    @property
    def is_last(self) -> bool:
        """Nothing of the unit runs after it."""
        return self.stop == self.parts


def read_piece(name: str) -> Piece | None:
    """The piece that a name means; None for the name of a whole unit."""
    match = _PIECE.fullmatch(name)
    return None if match is None else Piece(match["unit"], int(match["start"]), int(match["stop"]))


def unit_of(name: str) -> str:
    """The unit that a name (of a unit or of a piece) belongs to."""
    piece = read_piece(name)
    return name if piece is None else piece.unit
