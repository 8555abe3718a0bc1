"""Schedules in the V placement that repeat one building block every six ticks, one block per microbatch (Qi et al.
2024, "Pipeline Parallelism with Controllable Memory", arXiv 2405.15362).

    V-Min, 2 ranks      tick 0  1  2  3  4  5  6  7  8
    rank 0 | one block       F0 .  .  F1 I1 .  .  I0 .         and again 6 ticks later for the next microbatch;
    rank 1 | one block       .  F0 F1 .  .  I1 I0 .  .         W take the ticks that stay free, oldest first

How long a block lives on a rank decides how much the rank holds: the V makes the sum over both its stages about equal.
Only the *order* is used; ranks run it as early as they can. The authors also move actions of warm-up and cool-down
forward; that pass is not published in enough detail to be repeated, so the idle time here is that of the plain block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hybrid_runtime.schedule.actions import ActionList, Kind
from hybrid_runtime.schedule.rank_list import RankList

PERIOD = 6  # ticks: F, I and W of both stages of a rank


class Offsets(NamedTuple):
    """At which tick of a microbatch's block one rank does what; `near` is its first stage, `far` its second."""

    forward_near: int
    forward_far: int
    input_far: int
    input_near: int


def repeat_block(offsets: Sequence[Offsets], num_microbatches: int) -> tuple[ActionList, ...]:
    """The lists of all ranks.

    Args:
        offsets: per rank.
    """
    return tuple(_rank(rank, len(offsets), block, num_microbatches) for rank, block in enumerate(offsets))


def _rank(rank: int, pp_degree: int, block: Offsets, num_microbatches: int) -> ActionList:
    near, far = rank, 2 * pp_degree - 1 - rank
    works = ((Kind.F, near), (Kind.F, far), (Kind.I, far), (Kind.I, near))
    at_tick = {
        offset + PERIOD * microbatch: work
        for microbatch in range(num_microbatches)
        for offset, work in zip(block, works)
    }
    assert len(at_tick) == len(works) * num_microbatches, f"two actions at one tick: {block}"
    row = RankList()
    for tick in range(max(at_tick) + 1):
        if tick in at_tick:
            row.add(*at_tick[tick])
        else:
            row.add_pending_weight()
    return row.actions()
