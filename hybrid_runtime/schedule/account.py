"""Where every rank's time goes, and how many messages pile up, in a replayed step.

rank 1 |  .  .  F0 B0 .  F1 B1 .  .        warm-up: before its first action     waiting: for the rank named
         warm-up      waiting  cool-down   cool-down: after its last
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from hybrid_runtime.schedule.actions import Action, Kind
from hybrid_runtime.schedule.messages import DirectedEdge, edge_name
from hybrid_runtime.schedule.replayed import Replay
from hybrid_runtime.schedule.rows import NOTHING
from hybrid_runtime.schedule.step_costs import Time

_TAKERS = {Kind.SEND_F: (1, (Kind.F,)), Kind.SEND_B: (-1, (Kind.I, Kind.B))}


@dataclass(frozen=True, slots=True)
class RankTime:
    """One rank's step; the parts add up to the makespan exactly.

    Attributes:
        compute: F, I, W and B, and the lookups of a sharded embedding.
        tensor_parallel: collectives inside them that nothing hides.
        messages: copying messages of blocking edges.
        warm_up: before its first action.
        waiting: between two actions, by the rank whose result comes last.
        cool_down: after its last action, until the last rank ends.
    """

    compute: Time
    tensor_parallel: Time
    messages: Time
    warm_up: Time
    waiting: Mapping[int, Time]
    cool_down: Time


def rank_times(step: Replay) -> tuple[RankTime, ...]:
    """Where the time of every rank goes."""
    return tuple(_rank_time(step, rank) for rank in range(step.rows.num_ranks))


def determined_by(step: Replay, index: int) -> int:
    """Index of what decided when an operation started: the one before it in its row, or the latest that it waited for.

    NOTHING where it started with the step.
    """
    rows = step.rows
    if step.starts[index] == 0:
        return NOTHING
    if index not in rows.row_starts and step.ends[index - 1] == step.starts[index]:
        return index - 1
    return next(
        other
        for other in rows.waits_of(index)
        if step.ends[other] + step.lags[rows.classes[other]] == step.starts[index]
    )


def outstanding_messages(step: Replay) -> dict[str, int]:
    """Per directed edge "src>dst", the most messages under way or arrived and not yet taken at any one time."""
    index = {action: number for number, action in enumerate(step.rows.actions)}
    events: dict[DirectedEdge, list[tuple[int, int]]] = defaultdict(list)
    for number, edge in enumerate(step.rows.edges):
        for message in step.rows.row(step.rows.num_ranks + number):
            stage, kind, microbatch = step.rows.actions[message]
            hop, kinds = _TAKERS[kind]
            takers = (index.get(Action(stage + hop, taker, microbatch)) for taker in kinds)
            taken = next((step.starts[taker] for taker in takers if taker is not None), None)
            events[edge].append((step.starts[message], 1))
            events[edge] += [] if taken is None else [(taken, -1)]
    return {edge_name(edge): _highest(changes) for edge, changes in sorted(events.items())}


def _highest(changes: list[tuple[int, int]]) -> int:
    count = highest = 0
    for _, change in sorted(changes, key=lambda item: (item[0], -item[1])):
        count += change
        highest = max(highest, count)
    return highest


def _rank_time(step: Replay, rank: int) -> RankTime:
    row = step.rows.row(rank)
    messages, clock = 0, 0
    waiting: dict[int, int] = defaultdict(int)
    for index in row:
        if index > row.start and step.starts[index] > clock:
            waiting[_source(step, determined_by(step, index))] += step.starts[index] - clock
        clock = step.ends[index]
        if not step.rows.actions[index].kind.is_compute:
            messages += clock - step.starts[index]
    occupied = sum(step.ends[index] - step.starts[index] for index in row)
    return RankTime(
        compute=step.busy[rank],
        tensor_parallel=step.time(occupied - messages) - step.busy[rank],
        messages=step.time(messages),
        warm_up=step.time(step.starts[row.start]) if row else Fraction(0),
        waiting={source: step.time(ticks) for source, ticks in sorted(waiting.items())},
        cool_down=step.makespan - step.time(clock),
    )


def _source(step: Replay, index: int) -> int:
    """The rank that an operation comes from."""
    row = step.rows.row_of(index)
    return row if row < step.rows.num_ranks else step.rows.edges[row - step.rows.num_ranks][0]
