"""Event replay: when every action starts and ends, given what actions cost. Exact arithmetic, no torch, O(actions).

Each rank runs its list strictly in order, one action at a time; an action starts when what it needs has ended and, if
that came from another rank, arrived.

    F = 1, B = 2, free messages      time 0  1  2  3  4  5  6  7  8
    rank 0 | F0 F1 B0 B1                  F0 F1 .  .  B0 B0 .  B1 B1
    rank 1 | F0 B0 F1 B1                  .  F0 B0 B0 F1 B1 B1 .  .         makespan 9, busy 6, idle 3 on each

`replay` is the whole thing in one call; `to_rows` once and `replay_rows` often replays the same lists
with many costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.messages import edge_of
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.replay_loop import NOT_YET, run_rows
from hybrid_runtime.schedule.replayed import Peak, Replay, Timed
from hybrid_runtime.schedule.rows import KINDS, Rows, to_rows
from hybrid_runtime.schedule.step_costs import Hop, StageKind, StepCosts, Time

__all__ = ["Peak", "Replay", "Time", "Timed", "replay", "replay_rows", "replay_step"]

# Below this many operations, Python is done before numba is imported (a quarter of a second).
COMPILED_FROM = 50_000
_INT64 = 2**62


def replay(
    lists: Sequence[ActionList],
    stage_to_rank: StageToRank,
    durations: Mapping[StageKind, Time],
    *,
    hop_lag: Time = 0,
) -> Replay:
    """Replays one step in which only compute and the latency of messages cost time.

    Args:
        lists: one per pipeline rank; compute lists, or lowered ones, in which no message moves before its RECV.
        durations: per (stage, kind).
        hop_lag: how long after its end a result arrives on another rank.

    Raises:
        PlanError: a rank can never run one of its actions (`check` says why), or a duration is missing.
    """
    return replay_step(lists, stage_to_rank, StepCosts(durations, hop=Hop(latency=hop_lag)))


def replay_step(lists: Sequence[ActionList], stage_to_rank: StageToRank, costs: StepCosts) -> Replay:
    """Replays one step with everything that actions and messages cost.

    Raises:
        PlanError: as `replay`.
    """
    ranks = range(len(lists))
    blocking = {(a, b) for a in ranks for b in ranks if a != b and costs.hop_of((a, b)).blocking}
    return replay_rows(to_rows(lists, stage_to_rank, blocking), costs)


def replay_rows(rows: Rows, costs: StepCosts) -> Replay:
    """Replays rows; `costs` must name the blocking edges that the rows were made with.

    Raises:
        PlanError: as `replay`.
    """
    times, lags, tick = _ticks(rows, costs)
    longest = len(rows.actions) * (max(times, default=0) + max(map(abs, lags), default=0))
    run = _compiled if len(rows.actions) >= COMPILED_FROM and longest < _INT64 else _interpreted
    starts, ends = run(rows, times, lags)
    for rank in range(rows.num_ranks):
        row = rows.row(rank)
        if row and ends[row[-1]] == NOT_YET:
            stuck = next(index for index in row if ends[index] == NOT_YET)
            raise PlanError(f"pipeline rank {rank} can never run {rows.actions[stuck]}: check the schedule")
    return Replay(rows, costs, starts, ends, lags, tick)


def _ticks(rows: Rows, costs: StepCosts) -> tuple[list[int], list[int], Fraction]:
    """Time and lag of every class in ticks, and the duration of a tick: a unit of which all of them are multiples."""
    times: list[Time] = [0] * (len(KINDS) * len(rows.stage_to_rank))
    lags = list(times)
    for number in set(rows.classes):
        stage, kind = number // len(KINDS), KINDS[number % len(KINDS)]
        if kind.is_compute:
            times[number] = costs.compute(stage, kind) + costs.collectives(stage, kind)
            lags[number] = _lookup_lag(stage, kind, rows, costs) if kind.is_lookup else 0
        else:
            times[number], lags[number] = _message(stage, kind, rows, costs)
    unit = math.lcm(*(time.denominator for time in (*times, *lags)))
    return [int(time * unit) for time in times], [int(lag * unit) for lag in lags], Fraction(1, unit)


def _lookup_lag(stage: int, kind: Kind, rows: Rows, costs: StepCosts) -> Time:
    """How much later a lookup is in the sum, or a gradient with the last rank that takes it. Sums of several
    microbatches are taken not to delay each other."""
    home, ranks = rows.stage_to_rank[0], set(rows.stage_to_rank)
    here = rows.stage_to_rank[stage]
    edges = [(here, home)] if kind is Kind.EF else [(home, rank) for rank in ranks] if stage == 0 else []
    hops = [costs.hop_of(edge).latency + costs.transfer(stage, kind, edge) for edge in edges if edge[0] != edge[1]]
    return max(hops, default=0)


def _message(stage: int, kind: Kind, rows: Rows, costs: StepCosts) -> tuple[Time, Time]:
    """Time of a SEND or RECV, and how much later its taker may start.

    On a blocking edge the RECV may start `latency` after the start of the SEND: bytes are copied out as they come in.
    """
    message = Action(stage, kind, 0)
    edge = edge_of(message, rows.stage_to_rank)
    if kind.is_receive:
        sender = stage - 1 if kind is Kind.RECV_F else stage + 1
        return costs.transfer(sender, Kind.SEND_F if kind is Kind.RECV_F else Kind.SEND_B, edge), 0
    transfer, latency = costs.transfer(stage, kind, edge), costs.hop_of(edge).latency
    return transfer, latency - transfer if edge in rows.blocking else latency


def _interpreted(rows: Rows, times: list[int], lags: list[int]) -> tuple[list[int], list[int]]:
    starts, ends = [0] * len(rows.actions), [NOT_YET] * len(rows.actions)
    places = list(rows.row_starts[:-1])
    run_rows(rows.row_starts, rows.classes, rows.waits, rows.wait_starts, times, lags, starts, ends, places)
    return starts, ends


def _compiled(rows: Rows, times: list[int], lags: list[int]) -> tuple[list[int], list[int]]:
    from hybrid_runtime.schedule import replay_compiled

    return replay_compiled.run_rows_int64(rows, times, lags)
