"""ZB-H1: 1F1B with a split backward, whose W fill the gaps, in the memory of 1F1B's first rank (Qi et al. 2023,
"Zero Bubble Pipeline Parallelism", arXiv 2401.10241, section 2).

    rank 0 | F0 F1 I0 W0 F2 I1 W1 F3 I2 W2 I3 W3
    rank 1 | F0 I0 F1 I1 W0 F2 I2 W1 F3 I3 W2 W3

Idle per rank: (pp_degree - 1)(F + I - W). Every rank holds pp_degree microbatches if W frees what F kept.
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import ActionList, Kind
from hybrid_runtime.schedule.rank_list import RankList


def zb_h1(pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """One list per rank, one stage per rank; any num_microbatches >= 1."""
    return tuple(
        deferred_weights(rank, num_microbatches, warm_up=pp_degree - rank, lag=rank) for rank in range(pp_degree)
    )


def deferred_weights(stage: int, num_microbatches: int, *, warm_up: int, lag: int) -> ActionList:
    """Forwards first, then I and F in turn, with W as soon as more than `lag` of them are pending."""
    row = RankList()
    row.add(Kind.F, stage, times=min(warm_up, num_microbatches))
    for _ in range(num_microbatches):
        row.add(Kind.I, stage)
        if row.pending > lag:
            row.add_pending_weight()
        if row.count(Kind.F, stage) < num_microbatches:
            row.add(Kind.F, stage)
    return row.actions()
