"""GPipe: all forwards, then all backwards (Huang et al. 2019, arXiv 1811.06965).

    rank 0 | F0 F1 F2 B0 B1 B2
    rank 1 | F0 F1 F2 B0 B1 B2

Every rank keeps the activations of all microbatches. Idle per rank (equal stages): (pp_degree - 1)(F + B).
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import Action, ActionList, Kind


def gpipe(pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """One list per rank, one stage per rank; any num_microbatches >= 1."""
    return tuple(
        tuple(Action(stage, kind, microbatch) for kind in (Kind.F, Kind.B) for microbatch in range(num_microbatches))
        for stage in range(pp_degree)
    )
