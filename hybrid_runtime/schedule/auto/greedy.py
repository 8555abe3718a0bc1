"""A greedy order for given costs and limits: whichever rank can start something first starts the most urgent it has.

I goes before F; older microbatches and deeper stages first; W fills gaps. How much each counts is a matter of three
numbers, so several are tried. With loose limits the result beats the known schedules, with tight ones it does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from hybrid_runtime.schedule.auto.problem import (
    FIRST,
    FIRST_LAG,
    FREED,
    KEPT,
    NONE,
    SECOND,
    SECOND_LAG,
    TEMPORARY,
    TIME,
    Ints,
    Problem,
)
from hybrid_runtime.schedule.compiled import jit

ALPHAS, BETAS, SLACKS = (0.0, 0.5, 1.0), (0.3, 0.7, 1.0), (0.3, 1.0)
_READ, _CLOCK, _LIVE = range(3)  # columns of `ranks`
_LATE = 2**62


def greedy_orders(problem: Problem) -> Iterator[Ints]:
    """Orders, one for every choice of the three numbers that finds one within the limits."""
    shape = len(problem.limits), int(problem.lengths.max())
    depth = _depth(problem)
    reserve = _reserve(problem)
    longest = max(int(problem.tables[row[row != NONE], TIME].sum()) for row in problem.streams_of)
    for alpha, beta, slack in itertools.product(ALPHAS, BETAS, SLACKS):
        order = np.full(shape, NONE, np.int64)
        if fill(
            alpha,
            beta * longest,
            slack,
            problem.tables,
            problem.streams_of,
            problem.limits,
            depth,
            reserve,
            problem.num_microbatches,
            order,
        ):
            yield order


def _depth(problem: Problem) -> Ints:
    """Per stream, the work of its microbatch before it: forwards of earlier stages, then input gradients of later."""
    times = problem.tables[:, TIME]
    depth = np.zeros(len(times), np.int64)
    depth[0::3] = np.cumsum(times[0::3]) - times[0::3]
    depth[1::3] = times[0::3].sum() + np.cumsum(times[1::3][::-1])[::-1] - times[1::3]
    return depth


def _reserve(problem: Problem) -> Ints:
    """Per stream, bytes that must stay free when an F starts: or the deeper stages of its rank never get to run."""
    need = problem.tables[:, KEPT] + problem.tables[:, TEMPORARY]
    reserve = np.zeros(len(need), np.int64)
    for row in problem.streams_of.tolist():
        forwards = [stream for stream in row if stream != NONE and stream % 3 == 0]
        for place, stream in enumerate(forwards[:-1]):
            reserve[stream] = min(need[deeper] for deeper in forwards[place + 1 :])
    return reserve


@jit
def ready(stream: int, microbatch: int, tables: Ints, counts: Ints, ends: Ints) -> int:
    """When all that an action waits for has arrived; _LATE if that is not known yet."""
    time = 0
    for column in (FIRST, SECOND):
        other = tables[stream, column]
        if other != NONE:
            if counts[other] <= microbatch:
                return _LATE
            lag = tables[stream, FIRST_LAG] if column == FIRST else tables[stream, SECOND_LAG]
            time = max(time, ends[other, microbatch] + lag)
    return time


@jit
def next_main(
    rank: int,
    alpha: float,
    beta_time: float,
    tables: Ints,
    streams: Ints,
    limits: Ints,
    depth: Ints,
    reserve: Ints,
    counts: Ints,
    ends: Ints,
    ranks: Ints,
) -> tuple[int, int]:
    """The most urgent F or I among those of a rank that can start first, and its start; NONE if there is none."""
    earliest = _LATE
    best, best_key = NONE, 0.0
    for look in range(2):
        for stream in streams:
            if stream == NONE or stream % 3 == 2 or counts[stream] == ends.shape[1]:
                continue
            needed = tables[stream, KEPT] + tables[stream, TEMPORARY] + reserve[stream]
            start = max(ranks[rank, _CLOCK], ready(stream, counts[stream], tables, counts, ends))
            if start == _LATE or ranks[rank, _LIVE] + needed > limits[rank]:
                continue
            if look == 0:
                earliest = min(earliest, start)
            elif start == earliest:
                key = alpha * depth[stream] + beta_time * counts[stream]
                urgent = stream % 3 > best % 3 if best != NONE else True
                same = best != NONE and stream % 3 == best % 3
                if urgent or (same and key <= best_key):  # streams come deepest last
                    best, best_key = stream, key
    return best, earliest


@jit
def next_filler(streams: Ints, tables: Ints, counts: Ints, ends: Ints) -> int:
    """The oldest W that can run, of those the deepest; NONE if there is none."""
    best = NONE
    for stream in streams:
        is_ready = stream != NONE and stream % 3 == 2 and counts[stream] < counts[tables[stream, FIRST]]
        if is_ready and (best == NONE or counts[stream] <= counts[best]):
            best = stream
    return best


@jit
def fill(
    alpha: float,
    beta_time: float,
    slack: float,
    tables: Ints,
    streams_of: Ints,
    limits: Ints,
    depth: Ints,
    reserve: Ints,
    num_microbatches: int,
    order: Ints,
) -> bool:
    """Builds `order`, action by action; False if the limits leave nothing that can run.

    Args:
        alpha, beta_time: weights of depth and of the microbatch's number in the priority of F and I.
        slack: a W goes into a gap of this share of its own time or more.
    """
    counts = np.zeros(len(tables), np.int64)
    ends = np.zeros((len(tables), num_microbatches), np.int64)
    ranks = np.zeros((len(limits), 3), np.int64)
    for _ in range(len(tables) * num_microbatches):
        chosen, chosen_rank, chosen_start = NONE, 0, _LATE
        for rank in range(len(limits)):
            streams = streams_of[rank]
            best, start = next_main(
                rank, alpha, beta_time, tables, streams, limits, depth, reserve, counts, ends, ranks
            )
            filler = next_filler(streams, tables, counts, ends)
            clock = ranks[rank, _CLOCK]
            if filler != NONE and start - clock >= slack * tables[filler, TIME] and start > clock:
                best, start = filler, clock
            if best != NONE and start < chosen_start:
                chosen, chosen_rank, chosen_start = best, rank, start
        if chosen == NONE:
            return False
        end = chosen_start + tables[chosen, TIME]
        ends[chosen, counts[chosen]] = end
        counts[chosen] += 1
        order[chosen_rank, ranks[chosen_rank, _READ]] = chosen
        ranks[chosen_rank, _READ] += 1
        ranks[chosen_rank, _CLOCK] = end
        ranks[chosen_rank, _LIVE] += tables[chosen, KEPT] - tables[chosen, FREED]
    return True
