"""Forward passes only, for workload `forward`: fill and drain, on every placement.

linear      rank 0 | F0 F1 F2
            rank 1 | F0 F1 F2

loop        rank 0 | 0F0 0F1 2F0 2F1 0F2 0F3 2F2 2F3        groups of at least pp_degree microbatches, so that a
            rank 1 | 1F0 1F1 3F0 3F1 1F2 1F3 3F2 3F3        group's last stage on a rank never waits for its first

V           rank 0 | 0F0 0F1 0F2 3F0 3F1 3F2                the deeper stage first: what has come back is finished
            rank 1 | 1F0 2F0 1F1 2F1 1F2 2F2

Idle per rank in forwards of its whole share: pp_degree - 1 (linear and V), (pp_degree - 1) / virtual_stages (loop).
"""

from __future__ import annotations

from itertools import pairwise

from hybrid_runtime.schedule.actions import Action, ActionList, Kind


def forward_only(pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """Every stage forwards all microbatches in order; one stage per rank."""
    return tuple(
        tuple(Action(stage, Kind.F, microbatch) for microbatch in range(num_microbatches)) for stage in range(pp_degree)
    )


def forward_only_loop(pp_degree: int, num_microbatches: int, virtual_stages: int = 2) -> tuple[ActionList, ...]:
    """Any num_microbatches >= 1: the groups' sizes differ by at most one."""
    rounds = max(1, num_microbatches // pp_degree)
    ends = [num_microbatches * number // rounds for number in range(rounds + 1)]
    visits = [
        (turn, microbatch)
        for first, end in pairwise(ends)
        for turn in range(virtual_stages)
        for microbatch in range(first, end)
    ]
    return tuple(
        tuple(Action(turn * pp_degree + rank, Kind.F, microbatch) for turn, microbatch in visits)
        for rank in range(pp_degree)
    )


def forward_only_v(pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """Two stages per rank; a rank fills the pipeline below it, then takes the deeper stage and its first in turn."""
    return tuple(_v_rank(rank, pp_degree, num_microbatches) for rank in range(pp_degree))


def _v_rank(rank: int, pp_degree: int, num_microbatches: int) -> ActionList:
    near, far = rank, 2 * pp_degree - 1 - rank
    warm_up = min(2 * (pp_degree - rank) - 1, num_microbatches)
    actions = [Action(near, Kind.F, microbatch) for microbatch in range(warm_up)]
    for microbatch in range(num_microbatches):
        actions.append(Action(far, Kind.F, microbatch))
        if warm_up + microbatch < num_microbatches:
            actions.append(Action(near, Kind.F, warm_up + microbatch))
    return tuple(actions)
