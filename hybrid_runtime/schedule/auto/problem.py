"""What the search works on: the costs of a step as flat integer tables, and the lower bound of its makespan.

A *stream* is one kind of work of one stage, 3 * stage + (0 F, 1 I, 2 W). Its microbatches run in increasing order, so a
rank's order is a row of stream numbers: the n-th time a number stands there means microbatch n. Every stream waits for
the same microbatch of at most two others:

    kF   (k-1)F + lag       kI   kF, (k+1)I + lag       kW   kI

Simpler than the replay in one point: messages of an edge do not wait for each other, each takes its whole time. The
replay has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.step_costs import StepCosts, Time

Ints = NDArray[np.int64]

KINDS = (Kind.F, Kind.I, Kind.W)
NONE = -1
# Columns of `tables`; TAIL is the time from a stream's start to the end of the step at least.
TIME, FIRST, FIRST_LAG, SECOND, SECOND_LAG, TAIL, KEPT, FREED, TEMPORARY = range(9)
NO_LIMIT = 2**62
_MOST_TICKS = 2**50  # of all work together: sums stay far inside int64


@dataclass(frozen=True)
class Problem:
    """Everything that a search needs to know.

    Attributes:
        stage_to_rank, num_microbatches: what is scheduled.
        tick: unit of all times here, in the unit of the costs.
        tables: [stream, column], int64.
        streams_of: [rank, column], the rank's streams, NONE behind the last.
        limits: [rank], bytes.
        bound: no order ends earlier, in ticks.
    """

    stage_to_rank: tuple[int, ...]
    num_microbatches: int
    tick: Fraction
    tables: Ints
    streams_of: Ints
    limits: Ints
    bound: int

    @property
    def lengths(self) -> Ints:
        """[rank], actions of a rank."""
        lengths: Ints = self.num_microbatches * (self.streams_of != NONE).sum(axis=1, dtype=np.int64)
        return lengths


def make_problem(
    stage_to_rank: StageToRank, num_microbatches: int, costs: StepCosts, limits: Sequence[int] | None
) -> Problem:
    """The problem of a placement with these costs.

    Args:
        costs: F, I and W of every stage; a searched order always splits the backward.
        limits: bytes per pipeline rank; None for no limit.

    Raises:
        PlanError: a duration is missing, or there is not one limit per rank.
    """
    num_ranks = max(stage_to_rank) + 1
    if limits is not None and len(limits) != num_ranks:
        raise PlanError(f"there are {num_ranks} pipeline ranks and {len(limits)} limits: give one limit per rank")
    times, lags, tick = _times(stage_to_rank, num_microbatches, costs)
    saved = [math.ceil(_saved_by_b(stage, costs) / tick) for stage in range(len(stage_to_rank))]
    tables = _tables(times, lags, costs)
    streams_of = np.full((num_ranks, 3 * max(map(stage_to_rank.count, range(num_ranks)))), NONE, np.int64)
    for rank in range(num_ranks):
        streams = [stream for stream in range(len(tables)) if stage_to_rank[stream // 3] == rank]
        streams_of[rank, : len(streams)] = streams
    return Problem(
        tuple(stage_to_rank),
        num_microbatches,
        tick,
        tables,
        streams_of,
        np.array([NO_LIMIT] * num_ranks if limits is None else [min(limit, NO_LIMIT) for limit in limits], np.int64),
        _bound(tables, streams_of, num_microbatches, saved),
    )


def to_lists(order: Ints, problem: Problem) -> tuple[ActionList, ...]:
    """The compute lists that an order means."""
    return tuple(_to_list(order[rank, :length]) for rank, length in enumerate(problem.lengths.tolist()))


def to_order(lists: Sequence[ActionList], problem: Problem) -> Ints | None:
    """The order that compute lists mean, B split into I and W; None if a stream's microbatches are not in order."""
    order = np.full((len(lists), int(problem.lengths.max())), NONE, np.int64)
    for rank, actions in enumerate(lists):
        split = [action for whole in actions for action in _split(whole)]
        row = [3 * action.stage + KINDS.index(action.kind) for action in split]
        order[rank, : len(row)] = row
        if _to_list(order[rank, : len(row)]) != tuple(split):
            return None
    return order


def _to_list(row: Ints) -> ActionList:
    counts: dict[int, int] = {}
    actions = []
    for stream in row.tolist():
        counts[stream] = counts.get(stream, -1) + 1
        actions.append(Action(stream // 3, KINDS[stream % 3], counts[stream]))
    return tuple(actions)


def _split(action: Action) -> tuple[Action, ...]:
    if action.kind is not Kind.B:
        return (action,)
    return action._replace(kind=Kind.I), action._replace(kind=Kind.W)


def _times(
    stage_to_rank: StageToRank, num_microbatches: int, costs: StepCosts
) -> tuple[list[int], list[int], Fraction]:
    """Per stream its time, and the lag of its result on the way to another stage, in ticks.

    Messages on blocking edges are part of the times at both ends and overlap but for the latency, as in the replay.
    """
    last = len(stage_to_rank) - 1
    times = [costs.compute(k, kind) + costs.collectives(k, kind) for k in range(last + 1) for kind in KINDS]
    lags: list[Time] = [0] * len(times)
    hops = [(k, k + 1, Kind.F) for k in range(last)] + [(k, k - 1, Kind.I) for k in range(last, 0, -1)]
    for stage, taker, kind in hops:
        edge = stage_to_rank[stage], stage_to_rank[taker]
        if edge[0] != edge[1]:
            transfer = costs.transfer(stage, Kind.SEND_F if kind is Kind.F else Kind.SEND_B, edge)
            sent, taken = (3 * k + KINDS.index(kind) for k in (stage, taker))
            blocking = costs.hop_of(edge).blocking
            lags[sent] = costs.hop_of(edge).latency + (-transfer if blocking else transfer)
            times[sent] += transfer if blocking else 0
            times[taken] += transfer if blocking else 0
    unit = Fraction(math.lcm(*(time.denominator for time in (*times, *lags))))
    all_work = num_microbatches * unit * (sum(times) + sum(max(lag, -lag) for lag in lags))
    unit /= max(1, math.ceil(all_work / _MOST_TICKS))
    return [math.floor(time * unit) for time in times], [math.floor(lag * unit) for lag in lags], 1 / unit


def _saved_by_b(stage: int, costs: StepCosts) -> Time:
    """How much shorter a whole backward is than its halves."""
    halves, whole = (
        sum(costs.compute(stage, kind) + costs.collectives(stage, kind) for kind in kinds)
        for kinds in ((Kind.I, Kind.W), (Kind.B,))
    )
    return max(0, halves - whole)


def _tables(times: Sequence[int], lags: Sequence[int], costs: StepCosts) -> Ints:
    tables = np.zeros((len(times), 9), np.int64)
    last = len(times) - 3
    for f in range(0, len(times), 3):
        i, w = f + 1, f + 2
        tables[f, FIRST], tables[f, FIRST_LAG] = (f - 3, lags[f - 3]) if f > 0 else (NONE, 0)
        tables[i, FIRST], tables[w, FIRST] = f, i
        tables[i, SECOND], tables[i, SECOND_LAG] = (i + 3, lags[i + 3]) if f < last else (NONE, 0)
        tables[f, SECOND] = tables[w, SECOND] = NONE
    tables[:, TIME] = times
    for f in range(0, len(times), 3):
        i, w = f + 1, f + 2
        behind = tables[i - 3, TAIL] + lags[i] if f > 0 else 0
        tables[w, TAIL] = times[w]
        tables[i, TAIL] = times[i] + max(tables[w, TAIL], behind)
    for f in range(last, -1, -3):
        tables[f, TAIL] = times[f] + max(tables[f + 1, TAIL], tables[f + 3, TAIL] + lags[f] if f < last else 0)
    num_bytes = costs.action_bytes
    for column, of in ((KEPT, num_bytes.kept), (FREED, num_bytes.freed), (TEMPORARY, num_bytes.temporary)):
        tables[:, column] = [of.get((stream // 3, KINDS[stream % 3]), 0) for stream in range(len(times))]
    return tables


def _bound(tables: Ints, streams_of: Ints, num_microbatches: int, saved: Sequence[int]) -> int:
    """No rank can start before its first stage's input arrives, and then it has all its work to do.

        rank 0   F----------------------------- work --------|
        rank 1   .  >F------------------------- work -----------|        bound

    Nor can one microbatch be faster than its own way there and back. Holds for whole backwards too, which save `saved`
    ticks of every microbatch of a stage.
    """
    last = len(tables) - 3
    arrives = [0]
    for f in range(3, len(tables), 3):
        arrives.append(arrives[-1] + int(tables[f - 3, TIME] + tables[f, FIRST_LAG]))
    back = sum(int(tables[i, TIME] + tables[i, SECOND_LAG]) for i in range(1, len(tables), 3))
    bound = arrives[-1] + int(tables[last, TIME]) + back
    for row in streams_of.tolist():
        streams = [stream for stream in row if stream != NONE]
        work = int(tables[streams, TIME].sum()) - sum(saved[stream // 3] for stream in streams[::3])
        bound = max(bound, min(arrives[stream // 3] for stream in streams) + num_microbatches * work)
    return bound
