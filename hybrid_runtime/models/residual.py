"""x + f(norm(x)) with f a sum over parts: the whole unit, or a piece of it (pieces.py).

    whole    (x,)   -> (x + sum,)       n = norm(x);  column, mix, row;  the ranks' sums are added up
    first    (x,)   -> (u, n)           u = x + its parts
    middle   (u, n) -> (u, n)           u = u + its parts
    last     (u, n) -> (x + sum,)       u + its parts;  the ranks' sums are added up

Under tensor parallelism u is each rank's own part of a sum over the ranks and x is in it once; n is whole on every
rank. So the pieces need the collectives of the whole unit and no more: the gradients of u and n travel the same way
back. A message between pieces is two tensors of the whole sequence: twice as long as one between units, and with
sequence parallelism 2T times.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from hybrid_runtime.models.unit import Carry
from hybrid_runtime.pieces import Slice
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear


def residual_sum(
    carry: Carry,
    norm: nn.Module | None,
    column: ColumnParallelLinear,
    mix: Callable[[Tensor], Tensor],
    row: RowParallelLinear,
    piece: Slice | None,
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
    """
    if piece is None:
        (x,) = carry
        assert norm is not None
        return (x + row(mix(column(norm(x)))),)
    if piece.is_first:
        (x,) = carry
        assert norm is not None
        y, n = column.with_input(norm(x))
        return row(mix(y), residual=x), n
    u, n = carry
    if piece.is_last:
        return (row(mix(column(n)), partial=u),)
    y, n = column.with_input(n)
    return row(mix(y), partial=u), n
