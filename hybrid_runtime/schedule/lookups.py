"""Puts the lookups of a sharded embedding (`EF`, `EB`) into lowered lists. An EF stands one action early:

    rank 0 | 0EF0 0EF1 0F0 0EF2 0F1 ...    0B0 0EB0 0F2 ...     the sum of microbatch 1 is under way while 0F0 runs
    rank 1 | 1EF0 1EF1     1EF2 1F0 ...          1B1 1EB0 ...   where rank 1 is at that time; 1EB0 one action late

"At that time" is read off a replay of the lists, so a rank has done before its lookup only what ends before the sum's
taker can start, and no rank waits in a circle. Messages may still make a circle where sends wait for their receives,
which a replay does not know: then every EF comes an action earlier (it needs nothing) and every EB of another rank an
action later (nothing needs it), and so on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.replay import replay
from hybrid_runtime.schedule.replayed import Timed
from hybrid_runtime.schedule.step_costs import StageKind, Time
from hybrid_runtime.schedule.walk import walk

_Places = Mapping[int, Sequence[Action]]  # what goes before a rank's compute action of that number


def lookup_stage(stage_to_rank: StageToRank, rank: int) -> int:
    """The stage by which lookups name a rank: its first one."""
    return list(stage_to_rank).index(rank)


def with_lookups(
    lists: Sequence[ActionList], stage_to_rank: StageToRank, ranks: Sequence[int], durations: Mapping[StageKind, Time]
) -> tuple[ActionList, ...]:
    """The lists with the lookups of every microbatch.

    Args:
        lists: one per pipeline rank, right by `check`, with SENDs and RECVs or without.
        ranks: pipeline ranks that hold rows. Stage 0's takes part even without any: the sum is made there.
        durations: per (stage, kind) in any unit, of F, I and W or B.
    """
    home = stage_to_rank[0]
    rows = replay(lists, stage_to_rank, _positive(durations)).ranks
    lookups, gradients = _at_home(rows[home])
    most = max(map(len, rows))
    for slack in range(most + 1):
        placed = {
            rank: _at_home_places(lookups, gradients)
            if rank == home
            else _elsewhere(rows[rank], rows[home], lookups, gradients, lookup_stage(stage_to_rank, rank), slack)
            for rank in {home, *ranks}
        }
        found = tuple(_inserted(actions, placed.get(rank, {})) for rank, actions in enumerate(lists))
        if not walk(found, stage_to_rank, rendezvous=True):
            break
    return found


def _positive(durations: Mapping[StageKind, Time]) -> dict[StageKind, Time]:
    """What takes no time could end at the very instant at which something starts that it must follow."""
    least = Fraction(1, 1000) * max(durations.values(), default=1) or Fraction(1)
    return {key: time or least for key, time in durations.items()}


def _at_home(row: Sequence[Timed]) -> tuple[dict[Action, int], dict[Action, int]]:
    """On stage 0's rank: before which of its actions every EF stands, and every EB, in order."""
    lookups, gradients = dict[Action, int](), dict[Action, int]()
    for place, (action, _, _) in enumerate(row):
        if action.stage == 0 and action.kind is Kind.F:
            lookups[Action(0, Kind.EF, action.microbatch)] = max(0, place - 1)
        elif action.stage == 0 and action.kind in (Kind.B, Kind.I):
            gradients[Action(0, Kind.EB, action.microbatch)] = place + 1
    return lookups, gradients


def _at_home_places(lookups: Mapping[Action, int], gradients: Mapping[Action, int]) -> _Places:
    places: dict[int, list[Action]] = defaultdict(list)
    for action, place in (*lookups.items(), *gradients.items()):
        places[place].append(action)
    return places


def _elsewhere(
    row: Sequence[Timed],
    home: Sequence[Timed],
    lookups: Mapping[Action, int],
    gradients: Mapping[Action, int],
    stage: int,
    slack: int,
) -> _Places:
    """The same actions on another rank, by the time at which they are done on stage 0's."""
    starts, ends = [timed.start for timed in row], [timed.end for timed in row]
    places: dict[int, list[Action]] = defaultdict(list)
    for action, place in lookups.items():
        running = bisect_right(ends, home[place].start)
        places[max(0, running - slack)].append(action._replace(stage=stage))
    for action, place in gradients.items():
        following = bisect_left(starts, home[place - 1].end)
        places[min(len(row), following + 1 + slack)].append(action._replace(stage=stage))
    return places


def _inserted(actions: ActionList, places: _Places) -> ActionList:
    """A list with others before its compute actions of these numbers; what comes behind all of them ends the list."""
    numbers = accumulate((action.kind.is_compute for action in actions), initial=0)
    result: list[Action] = []
    for number, action in zip(numbers, actions):
        result += places.get(number, ()) if action.kind.is_compute else ()
        result.append(action)
    count = sum(action.kind.is_compute for action in actions)
    return (*result, *places.get(count, ()))
