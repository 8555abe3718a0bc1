"""Which tensor-parallel collectives a unit, or a piece of one, calls, and what of them shows in a step.

    unit          F                              B and I                 in a B hidden behind
    attn, mlp     all-reduce (row)               all-reduce (column)     the column's weight gradient
    head          all-gather of the loss' sums   all-reduce              its weight gradient
    embedding     all-reduce                     -
    with sequence parallelism an all-reduce is a reduce-scatter and, where the sequence is needed, an all-gather

The pieces of a unit share its calls: the first has those of the column, the last those of the row. What a rank itself
computes in a call (copying, adding, waking up) hides behind nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.planner.step_model import Collective
from hybrid_runtime.planner.work import Work
from hybrid_runtime.shapes import LlamaShape

LOSS_SUMS = 3  # float32 numbers a token and rank (tensor_parallel/cross_entropy.py)


class CallTime(NamedTuple):
    """One call: what the rank computes in it that its unit's own time does not hold, and what it waits beside that."""

    compute_ns: int
    wait_ns: int


Calls = tuple[Collective, ...]


class UnitCalls(NamedTuple):
    """Calls over the carry in F, in the backward before dX is there, and of dX itself."""

    forward: Calls
    backward: Calls
    of_dx: Calls


def calls_of(kind: str, *, first: bool, last: bool, sequence_parallel: bool) -> UnitCalls:
    """The calls of a kind of unit.

    Args:
        first, last: it is the first, or the last, piece of its unit; the whole is both.
    """
    if kind == "embedding":
        return UnitCalls(("reduce_scatter",), ("all_gather",), ()) if sequence_parallel else _plain(True, False)
    row = last and kind != "head"
    if not sequence_parallel:
        return _plain(row, first)
    column: Calls = ("all_gather",) if first else ()
    dx: Calls = ("reduce_scatter",) if first else ()
    return UnitCalls((*column, *(("reduce_scatter",) if row else ())), ("all_gather",) if row else (), dx)


def _plain(row: bool, column: bool) -> UnitCalls:
    return UnitCalls(("all_reduce",) if row else (), (), ("all_reduce",) if column else ())


def column_part(kind: str, shape: LlamaShape) -> Fraction:
    """The part of a unit's weight gradient that is its column layer's, during which dX is summed."""
    if kind == "attn":
        column = shape.q_size + 2 * shape.kv_size
        return Fraction(column, column + shape.q_size)
    return Fraction(2, 3) if kind == "mlp" else Fraction(1)


def with_calls(
    work: Work, calls: UnitCalls, time_of: Callable[[Collective], CallTime], hides: Fraction, loss: CallTime | None
) -> Work:
    """A unit's own work with its calls.

    Args:
        hides: the part of its weight gradient behind which the sum of dX hides in a B.
        loss: of the head, the all-gather of the loss' sums.
    """

    def total(some: Sequence[CallTime]) -> CallTime:
        return CallTime(sum(one.compute_ns for one in some), sum(one.wait_ns for one in some))

    forward = total([*map(time_of, calls.forward), *([loss] if loss else [])])
    if not work.backward:
        return _longer(work, forward.compute_ns, 0)._replace(tp_forward=forward.wait_ns)
    backward, of_dx = total([*map(time_of, calls.backward)]), total([*map(time_of, calls.of_dx)])
    return _longer(work, forward.compute_ns, backward.compute_ns + of_dx.compute_ns)._replace(
        tp_forward=forward.wait_ns,
        tp_input_grad=backward.wait_ns + of_dx.wait_ns,
        tp_backward=backward.wait_ns + max(0, of_dx.wait_ns - int(work.weight_grad * hides)),
    )


def _longer(work: Work, forward_ns: int, backward_ns: int) -> Work:
    """The work, its own host included, with so much more compute in F, and in B and I."""
    return work._replace(
        forward=work.forward + forward_ns,
        host_forward=work.host_forward + forward_ns,
        backward=work.backward + backward_ns,
        host_backward=work.host_backward + backward_ns,
        input_grad=work.input_grad + backward_ns,
        host_input_grad=work.host_input_grad + backward_ns,
    )
