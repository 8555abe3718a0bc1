"""Forward passes only, for workload `forward`: fill and drain.

rank 0 | F0 F1 F2
rank 1 | F0 F1 F2
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import Action, ActionList, Kind


def forward_only(pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """Every stage forwards all microbatches in order; one stage per rank."""
    return tuple(
        tuple(Action(stage, Kind.F, microbatch) for microbatch in range(num_microbatches)) for stage in range(pp_degree)
    )
