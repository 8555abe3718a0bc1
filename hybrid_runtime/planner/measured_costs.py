"""What a run's own records say that its actions and messages cost: records -> `StepCosts` -> replay.

    rank 0 | 0F3 ~~ 0F3 |                    ~~ a wait inside an action: a collective that nothing hid
                        >> 0>1 >>            until the wait of rank 1 ends: what the message took
    rank 1 | 1RECV_F3 ~~~~~~~~~~~| 1F3 |

A message's time is from the end of the sender's action to the end of the taker's wait, and so holds what both executors
do for it. It is that only where the taker waited already when the message was sent; else it is an upper bound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.records import TRACE, RankRecords, StepRecord
from hybrid_runtime.schedule.actions import Action, parse_action
from hybrid_runtime.schedule.messages import DirectedEdge, partner, producers
from hybrid_runtime.schedule.step_costs import Hop, StageKind, StepCosts

_Place = tuple[int, int, int]  # (step, dp, tp): who shares one pipeline in one step


class _Done(NamedTuple):
    """One action as it was executed; an action of several spans ends with its last."""

    start_ns: int
    end_ns: int
    compute_ns: int
    wait_ns: int


def measured_costs(
    ranks: Sequence[RankRecords], purpose: str = TRACE, clock: Literal["wall", "thread_cpu"] = "wall"
) -> StepCosts:
    """The costs of a step, in whole nanoseconds, with which `replay_step` replays what the run did.

    Args:
        ranks: all ranks of a side, as `read_side` returns them.
        purpose: which of the measured steps; they must hold spans ("trace").
        clock: of durations. "thread_cpu" where ranks share cores: then a collective held an action up for as long as
            it waited and its thread did not run, and of that, as of messages, the least that was ever seen is taken: a
            lower bound.

    Returns:
        durations: per (stage, kind), the median over steps, microbatches, tensor ranks and replicas of an action's
            spans minus the waits inside them.
        tensor_parallel: the median of those waits.
        hops: per directed edge of pipeline ranks, the time of a message as a latency: the median of those that were
            waited for, or the least upper bound where none was. Between hosts as exact as their clock offsets.

    Raises:
        RecordsError: no such step was measured, or none of them holds an action.
    """
    done_at = _actions(ranks, purpose, clock)
    typical = _median if clock == "wall" else min
    compute_ns: dict[StageKind, list[int]] = defaultdict(list)
    wait_ns: dict[StageKind, list[int]] = defaultdict(list)
    for done in done_at.values():
        for action, time in done.items():
            compute_ns[action.stage, action.kind].append(time.compute_ns)
            wait_ns[action.stage, action.kind].append(time.wait_ns)
    return StepCosts(
        durations={key: _median(times) for key, times in compute_ns.items()},
        tensor_parallel={key: typical(times) for key, times in wait_ns.items()},
        hops=_hops(ranks, purpose, done_at, typical),
    )


def pipeline_times_ns(ranks: Sequence[RankRecords], purpose: str = TRACE) -> tuple[int, ...]:
    """Per measured step, from the start of the first action to the end of the last: what a replay's makespan predicts.

    Reading data, summing gradients and the update are outside. With several replicas, the longest one's.

    Raises:
        RecordsError: as `measured_costs`.
    """
    ends: dict[tuple[int, int], list[_Done]] = defaultdict(list)
    for (step, dp, _), done in _actions(ranks, purpose).items():
        ends[step, dp] += done.values()
    longest: dict[int, int] = defaultdict(int)
    for (step, _), times in ends.items():
        length_ns = max(time.end_ns for time in times) - min(time.start_ns for time in times)
        longest[step] = max(longest[step], length_ns)
    return tuple(longest[step] for step in sorted(longest))


def _hops(
    ranks: Sequence[RankRecords],
    purpose: str,
    done_at: Mapping[_Place, Mapping[Action, _Done]],
    typical: Callable[[list[int]], int],
) -> dict[DirectedEdge, Hop]:
    stage_to_rank = {stage: rank.header.pp for rank in ranks for stage in rank.header.stages}
    waited_for: dict[DirectedEdge, list[int]] = defaultdict(list)
    at_most: dict[DirectedEdge, list[int]] = defaultdict(list)
    for rank, step in _steps(ranks, purpose):
        done, offset_ns = done_at[_place(rank, step)], rank.header.clock_offset_ns
        for wait in step.waits:
            receive = _action(wait.name)
            if receive is None or not receive.kind.is_receive:
                continue
            made = next((done[action] for action in producers(partner(receive)) if action in done), None)
            if made is None:
                continue
            edge = stage_to_rank[partner(receive).stage], rank.header.pp
            waited = wait.start_ns + offset_ns <= made.end_ns
            (waited_for if waited else at_most)[edge].append(max(0, wait.end_ns + offset_ns - made.end_ns))
    known = {edge: typical(times) for edge, times in waited_for.items()}
    bounds = {edge: min(times) for edge, times in at_most.items() if edge not in known}
    return {edge: Hop(latency=time_ns) for edge, time_ns in sorted((known | bounds).items())}


def _actions(
    ranks: Sequence[RankRecords], purpose: str, clock: Literal["wall", "thread_cpu"] = "wall"
) -> Mapping[_Place, Mapping[Action, _Done]]:
    """Every compute action that was executed, on the clock that all hosts share."""
    found: dict[_Place, dict[Action, _Done]] = defaultdict(dict)
    for rank, step in _steps(ranks, purpose):
        done, offset_ns = found[_place(rank, step)], rank.header.clock_offset_ns
        for span in step.spans:
            action = _action(span.name)
            if action is None:
                continue
            start_ns, end_ns = span.start_ns + offset_ns, span.end_ns + offset_ns
            before = done.get(action, _Done(start_ns, end_ns, 0, 0))
            wall_ns, cpu_ns = end_ns - start_ns, max(0, span.cpu_ns)
            compute_ns = wall_ns - span.wait_ns if clock == "wall" else cpu_ns
            held_up_ns = span.wait_ns if clock == "wall" else max(0, min(span.wait_ns, wall_ns - cpu_ns))
            done[action] = _Done(before.start_ns, end_ns, before.compute_ns + compute_ns, before.wait_ns + held_up_ns)
    if not any(found.values()):
        raise RecordsError(
            f"{len(ranks)} ranks: no measured step of purpose {purpose!r} holds an action; name a run that got as far "
            "as its measured steps"
        )
    return found


def _steps(ranks: Sequence[RankRecords], purpose: str) -> Iterator[tuple[RankRecords, StepRecord]]:
    return ((rank, step) for rank in ranks for step in rank.measured(purpose))


def _place(rank: RankRecords, step: StepRecord) -> _Place:
    return step.step, rank.header.dp, rank.header.tp


def _action(name: str) -> Action | None:
    """The action of a span or wait; None for phases and collectives."""
    try:
        return parse_action(name)
    except ValueError:
        return None


def _median(times: Sequence[int]) -> int:
    return int(median(times))
