"""Event replay: when every compute action starts and ends, given durations. Exact arithmetic, no torch, O(actions).

Each rank runs its list strictly in order, one action at a time; an action starts when its dependencies have ended, plus
a lag for those on another rank. The lag occupies nobody (an overlapped transfer).

    F = 1, B = 2, no lag        time 0  1  2  3  4  5  6  7  8
    rank 0 | F0 F1 B0 B1             F0 F1 .  .  B0 B0 .  B1 B1
    rank 1 | F0 B0 F1 B1             .  F0 B0 B0 F1 B1 B1 .  .         makespan 9, busy 6, idle 3 on each
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.dependencies import needs
from hybrid_runtime.schedule.placement import StageToRank

Time = int | Fraction  # in the unit of the durations given: ns, FLOPs, or multiples of one forward


class Timed(NamedTuple):
    """One compute action with its start and end."""

    action: Action
    start: Time
    end: Time


@dataclass(frozen=True, slots=True)
class Replay:
    """A replayed step.

    Attributes:
        ranks: per pipeline rank, its compute actions in order.
    """

    ranks: tuple[tuple[Timed, ...], ...]

    @property
    def makespan(self) -> Time:
        """End of the last action; the step starts at 0."""
        return max((timed.end for rank in self.ranks for timed in rank), default=0)

    @property
    def busy(self) -> tuple[Time, ...]:
        """Per rank, the sum of its durations."""
        return tuple(sum((timed.end - timed.start for timed in rank), start=0) for rank in self.ranks)

    @property
    def idle(self) -> tuple[Time, ...]:
        """Per rank, what is left of the makespan."""
        return tuple(self.makespan - busy for busy in self.busy)

    @property
    def bubble(self) -> Fraction:
        """1 - sum(busy) / (ranks * makespan): the idle share of all ranks' time in a step that ends together."""
        whole = len(self.ranks) * self.makespan
        return 1 - Fraction(sum(self.busy), whole) if whole else Fraction(0)


def replay(
    lists: Sequence[ActionList],
    stage_to_rank: StageToRank,
    durations: Mapping[tuple[int, Kind], Time],
    *,
    hop_lag: Time = 0,
) -> Replay:
    """Replays one step; SENDs and RECVs in the lists are skipped.

    Args:
        durations: by (stage, kind) for every compute kind that occurs.
        hop_lag: from the end of an action to the start of one that needs it on another rank.

    Raises:
        PlanError: the lists cannot finish (`check` says why).
    """
    compute = [[action for action in actions if action.kind.is_compute] for actions in lists]
    state = _Replay(compute, stage_to_rank, durations, hop_lag)
    ready = list(range(len(lists)))
    while ready:
        ready += state.advance(ready.pop())
    for rank, actions in enumerate(compute):
        if len(state.timed[rank]) < len(actions):
            raise PlanError(f"pipeline rank {rank} can never run {actions[len(state.timed[rank])]}: check the schedule")
    return Replay(tuple(map(tuple, state.timed)))


class _Replay:
    def __init__(
        self,
        compute: Sequence[Sequence[Action]],
        stage_to_rank: StageToRank,
        durations: Mapping[tuple[int, Kind], Time],
        hop_lag: Time,
    ) -> None:
        self._compute = compute
        self._stage_to_rank = stage_to_rank
        self._durations = durations
        self._hop_lag = hop_lag
        self._end: dict[Action, Time] = {}
        self._waiting: dict[Action, list[int]] = defaultdict(list)  # ranks that stand before a needed action
        self.timed: list[list[Timed]] = [[] for _ in compute]

    def advance(self, rank: int) -> list[int]:
        """Runs one rank as far as it gets; returns the ranks that this may have freed."""
        timed, freed = self.timed[rank], list[int]()
        for action in self._compute[rank][len(timed) :]:
            start = self._start(action, rank, timed[-1].end if timed else 0)
            if start is None:
                break
            end = start + self._durations[action.stage, action.kind]
            timed.append(Timed(action, start, end))
            self._end[action] = end
            freed += self._waiting.pop(action, [])
        return freed

    def _start(self, action: Action, rank: int, clock: Time) -> Time | None:
        """Earliest start, or None (and a note in `_waiting`) while a dependency has not ended."""
        for alternatives in needs(action, len(self._stage_to_rank)):
            ended = [self._end[alternative] for alternative in alternatives if alternative in self._end]
            if not ended:
                for alternative in alternatives:
                    self._waiting[alternative].append(rank)
                return None
            lag = self._hop_lag if self._stage_to_rank[alternatives[0].stage] != rank else 0
            clock = max(clock, min(ended) + lag)
        return clock
