"""ZB-V: two stages per rank in the V placement with a split backward (Qi et al. 2024, "Pipeline Parallelism with
Controllable Memory", arXiv 2405.15362; the order is that of torch.distributed.pipelining's ScheduleZBVZeroBubble).

    rank 0 | 0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0F3 0I0 0W0 3F2 3I2 3W2 0I1 0W1 3F3 3I3 3W3 0I2 0W2 0I3 0W3
    rank 1 | 1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1F3 1I1 1W1 2F3 2I2 2W2 1I2 2I3 1I3 1W2 2W3 1W3

Idle per rank at F = I = W: (pp_degree - 1) F / 2. Every rank holds pp_degree microbatches. Fusing every I with
the W behind it delays the gradient that the I sends, and more than doubles the idle time.
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import ActionList, Kind
from hybrid_runtime.schedule.rank_list import RankList


def zb_v(pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """One list per rank, two stages per rank; any num_microbatches >= 1."""
    whole = max(num_microbatches, 2 * pp_degree - 1)  # the phases need that many; what is too much is left out again
    return tuple(
        tuple(action for action in _rank(rank, pp_degree, whole) if action.microbatch < num_microbatches)
        for rank in range(pp_degree)
    )


def _rank(rank: int, pp_degree: int, num_microbatches: int) -> ActionList:
    near, far = rank, 2 * pp_degree - 1 - rank
    row = RankList()
    row.add(Kind.F, near, times=2 * (pp_degree - rank) - 1)
    for _ in range(rank):
        row.add(Kind.F, far)
        row.add(Kind.F, near)
    for _ in range(pp_degree - rank):
        row.add(Kind.F, far)
        _add_split(row, far)
    while row.count(Kind.F, far) < row.count(Kind.F, near) or row.count(Kind.F, near) < num_microbatches:
        if row.count(Kind.F, near) < num_microbatches:
            row.add(Kind.F, near)
        _add_split(row, near)
        row.add(Kind.F, far)
        _add_split(row, far)
    for _ in range(rank):
        row.add(Kind.I, near)
        row.add(Kind.I, far)
    for _ in range(pp_degree - rank):
        _add_split(row, near)
    while row.pending_of(far):
        row.add_weight(far)
    return row.actions()


def _add_split(row: RankList, stage: int) -> None:
    row.add(Kind.I, stage)
    row.add_weight(stage)
