"""Costs that the tests of the search share."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.step_costs import Hop, StepCosts, activation_bytes


def v_costs(
    pp_degree: int, hop: Hop | None = None, shares: Sequence[str] = ("1", "1.15", "0.9"), first_chunk: str = "0.5"
) -> StepCosts:
    """Two stages per rank, one byte of activations each; by default F : I : W = 1 : 1.15 : 0.9 and hops of 2 % of F.

    Args:
        first_chunk: share of a rank's work that its first stage has.
    """
    part = [Fraction(first_chunk)] * pp_degree + [1 - Fraction(first_chunk)] * pp_degree
    kinds = (Kind.F, Kind.I, Kind.W)
    return StepCosts(
        {(k, kind): part[k] * Fraction(share) for k in range(2 * pp_degree) for kind, share in zip(kinds, shares)},
        hop=Hop(Fraction(2, 100)) if hop is None else hop,
        message_bytes={(k, kind): 3 for k in range(2 * pp_degree) for kind in (Kind.SEND_F, Kind.SEND_B)},
        action_bytes=activation_bytes([1] * (2 * pp_degree)),
    )
