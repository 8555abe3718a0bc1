"""DualPipeV: two stages per rank in the V placement, forwards and backwards of different microbatches in pairs that may
overlap (DeepSeek-AI 2024, github.com/deepseek-ai/DualPipe; "cut-in-half" of DualPipe; the order is that of
torch.distributed.pipelining's ScheduleDualPipeV).

    rank 0 | 0F0 0F1 0F2 3F0 3I0 3W0 3F1 (0F3;3B1) (3F2;0B0) 3B2 (3F3;0B1) 3B3 0I2 0W2 0I3 0W3
    rank 1 | 1F0 2F0 1F1 2F1 1F2 2B0 (2F2;1B0) (1F3;2B1) (2F3;1B1) 2B2 1B2 2I3 1I3 2W3 1W3

Idle per rank at F = I = W, one action at a time: (pp_degree - 1) F / 2. Every rank holds pp_degree + 1/2 microbatches.
"""

from __future__ import annotations

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import CellList, Kind
from hybrid_runtime.schedule.rank_list import RankList


def dualpipe_v(pp_degree: int, num_microbatches: int) -> tuple[CellList, ...]:
    """One list per rank, two stages per rank; pairs are overlaps.

    Raises:
        PlanError: fewer than 2 * pp_degree microbatches.
    """
    demand_two_per_rank(pp_degree, num_microbatches)
    return tuple(_rank(rank, pp_degree, num_microbatches) for rank in range(pp_degree))


def demand_two_per_rank(pp_degree: int, num_microbatches: int) -> None:
    """Raises PlanError where there are too few microbatches for both directions."""
    if num_microbatches < 2 * pp_degree:
        raise PlanError(
            f"dualpipe_v on {pp_degree} pipeline ranks needs at least {2 * pp_degree} microbatches, "
            f"not {num_microbatches}"
        )


def _rank(rank: int, pp_degree: int, num_microbatches: int) -> CellList:
    near, far = rank, 2 * pp_degree - 1 - rank
    below = pp_degree - rank - 1  # ranks between this one and the turn
    row = RankList()
    row.add(Kind.F, near, times=2 * below)
    for _ in range(rank + 1):
        row.add(Kind.F, near)
        row.add(Kind.F, far)
    for _ in range(below):
        row.add(Kind.I, far)
        row.add_pending_weight()
        row.add(Kind.F, far)
    for pair in range(num_microbatches - 2 * pp_degree + rank + 1):
        if pair == 0 and below == 0:  # at the turn there is nothing yet to overlap with
            row.add(Kind.F, near)
            row.add(Kind.B, far)
        else:
            row.add_overlap(near, far)
        row.add_overlap(far, near)
    for _ in range(below):
        row.add(Kind.B, far)
        row.add_overlap(far, near)
    _drain(row, rank, near, far)
    for _ in range(below):
        row.add_pending_weight()
        row.add(Kind.I, near)
    return row.cells()


def _drain(row: RankList, rank: int, near: int, far: int) -> None:
    """The last backwards of both stages in turn; the later half is split, so that its W fill the end."""
    for number in range(2 * (rank + 1)):
        kind = Kind.I if number > rank else Kind.B
        row.add(kind, near if number % 2 else far)
