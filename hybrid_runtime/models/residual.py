"""x + f(norm(x)) with f a sum over parts: the whole unit, or a piece of it (pieces.py).

    whole    (x,)   -> (x + sum,)       n = norm(x);  column, mix, row;  the ranks' sums are added up
    first    (x,)   -> (u, n)           u = x + its parts
    middle   (u, n) -> (u, n)           u = u + its parts
    last     (u, n) -> (x + sum,)       u + its parts;  the ranks' sums are added up

Under tensor parallelism u is each rank's own part of a sum over the ranks and x is in it once; n is whole on every
rank. So the pieces need the collectives of the whole unit and no more: the gradients of u and n travel the same way
back. A message between pieces is two tensors of the whole sequence: twice as long as one between units, and with
sequence parallelism 2T times.

What may be forgotten after F and computed again (recompute.py), of the whole unit and of pieces alike:

    selective   n = norm(x), and what mix returns    kept: x and the column's output, for which alone it takes a product
    full        mix(column(norm(x)))                 kept: x; the row's product and sum are never done again
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from hybrid_runtime.models.unit import Carry
from hybrid_runtime.pieces import Slice
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear
from hybrid_runtime.tensor_parallel.recompute import KEEP, Again, Recompute, forget


def residual_sum(
    carry: Carry,
    norm: nn.Module | None,
    column: ColumnParallelLinear,
    mix: Callable[[Tensor], Tensor],
    row: RowParallelLinear,
    piece: Slice | None,
    recompute: Recompute = KEEP,
) -> Carry:
    """The forward of a unit x + row(mix(column(norm(x)))), or of a piece of it.

    Args:
        carry: (x,), or (u, n) from the second piece on. x: (B, S, H), or (B, S/T, H) with sequence parallelism; u and
            n: (B, S, H).
        norm: None exactly from the second piece on.
        column: built for the piece.
        mix: (B, S, outputs of `column`) -> (B, S, inputs of `row`), each part on its own.
        row: built for the piece.
        piece: None for the whole unit.
        recompute: what is forgotten; `mix` and `norm` then run twice.
    """
    assert (norm is not None) == (piece is None or piece.is_first)
    inside = _Inside(norm, column, mix, hands_on=piece is not None and not piece.is_last)
    (h, *n), again = _INNER[recompute.kind](inside, carry[-1], recompute)
    if piece is None:
        return (carry[0] + row(h, again=again),)
    if piece.is_first:
        return row(h, residual=carry[0], again=again), *n
    return row(h, partial=carry[0], again=again), *n


class _Inside(NamedTuple):
    """All of a unit but its row: x, or n, -> (h,) that the row reads, and n where the next piece needs it."""

    norm: nn.Module | None
    column: ColumnParallelLinear
    mix: Callable[[Tensor], Tensor]
    hands_on: bool

    def normed(self, x: Tensor) -> tuple[Tensor]:
        return (x if self.norm is None else self.norm(x),)

    def columns(self, n: Tensor, again: Again | None = None) -> tuple[Tensor, ...]:
        return self.column.with_input(n, again=again) if self.hands_on else (self.column(n, again=again),)

    def mixed(self, y: Tensor) -> tuple[Tensor]:
        return (self.mix(y),)

    def whole(self, x: Tensor) -> tuple[Tensor, ...]:
        y, *n = self.columns(*self.normed(x))
        return self.mix(y), *n


def _kept(inside: _Inside, x: Tensor, recompute: Recompute) -> tuple[tuple[Tensor, ...], Again | None]:
    return inside.whole(x), None


def _selective(inside: _Inside, x: Tensor, recompute: Recompute) -> tuple[tuple[Tensor, ...], Again | None]:
    (n,), normed = ((x,), None) if inside.norm is None else forget(inside.normed, (x,), recompute.random)
    y, *handed_on = inside.columns(n, normed)
    (h,), mixed = forget(inside.mixed, (y,), recompute.random)
    return (h, *handed_on), mixed


def _full(inside: _Inside, x: Tensor, recompute: Recompute) -> tuple[tuple[Tensor, ...], Again | None]:
    return forget(inside.whole, (x,), recompute.random)


_INNER = {"none": _kept, "selective": _selective, "full": _full}
