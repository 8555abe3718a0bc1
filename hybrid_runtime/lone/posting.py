"""What a message takes from a CPU rank that computes: handing it over or taking it, and what that displaces.

    without   | F | B | F | I | W |
    with      | F >< B >< F >< I >< W ><      a message sent and one taken behind every pass of the model's units

The difference of both rounds, per message. The backend's threads share the rank's core, and units find caches that the
network's code has been through, so real units are needed to see the whole price.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from time import monotonic_ns

import torch
import torch.distributed as dist

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.lone.company import Work
from hybrid_runtime.lone.unit_times import PASSES

_LEAST_ROUNDS, _MOST_ROUNDS, _ROUNDS_S = 3, 40, 12.0


def posts_ns(axis: Axis, sizes: Sequence[int], work: Work) -> dict[int, int]:
    """By size in bytes, what a message takes from this one of the two ranks of an axis. Both call it.

    Rounds without and with messages of each size come by turns.

    Args:
        work: opens what is to be called for the next pass.
    """
    edges = [dist.new_group([0, 1]) for _ in range(2)]  # one a direction, as pipelines have
    taken: dict[int, list[int]] = defaultdict(list)
    with work() as act:
        for _ in range(PASSES):
            act()  # warms up
        rounds, begin_ns = _MOST_ROUNDS, monotonic_ns()
        while len(taken[0]) < rounds:
            for num_bytes in (0, *sizes):
                taken[num_bytes].append(_round_ns(axis, edges, act, num_bytes))
            if len(taken[0]) == 1:
                fit = int(_ROUNDS_S * 1e9 / (monotonic_ns() - begin_ns))
                rounds = _least(axis, min(_MOST_ROUNDS, max(_LEAST_ROUNDS, fit)))
    without = median(taken[0])
    return {size: max(0, int(median(taken[size]) - without) // (2 * PASSES)) for size in sizes}


def _round_ns(axis: Axis, edges: Sequence[dist.ProcessGroup], act: Callable[[], object], num_bytes: int) -> int:
    """Wall time of a round behind another one, so that from its first pass on messages have arrived.

    Args:
        num_bytes: of a message; 0 for none.
    """
    other, start_ns = 1 - axis.rank, 0
    out, into = torch.zeros(2, num_bytes // 4)
    works: list[dist.Work] = []
    arriving: list[dist.Work] = []
    _least(axis, 0)
    for number in range(2 * PASSES):
        if number == PASSES:
            start_ns = monotonic_ns()
        act()
        if num_bytes:
            announced = _started(dist.irecv(into, group=edges[other], group_src=other))
            works.append(_started(dist.isend(out, group=edges[axis.rank], group_dst=other)))
            for earlier in arriving:
                earlier.wait()
            arriving = [announced]
    took_ns = monotonic_ns() - start_ns
    for last in (*works, *arriving):
        last.wait()
    return took_ns


def _started(work: dist.Work | None) -> dist.Work:
    assert work is not None
    return work


def _least(axis: Axis, number: int) -> int:
    """The least of the ranks' numbers; they meet for it."""
    x = torch.tensor([number])
    dist.all_reduce(x, op=dist.ReduceOp.MIN, group=axis.group)
    return int(x.item())
