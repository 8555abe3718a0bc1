"""A second opinion on the replay, by another method: actions as they are, exact fractions, ranks polled in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.dependencies import lookup_stages, needs

Times = dict[Action, tuple[Fraction, Fraction]]


def start_and_end(
    lists: Sequence[ActionList],
    stage_to_rank: Sequence[int],
    durations: Mapping[tuple[int, Kind], Fraction],
    hop_lag: Fraction,
) -> Times:
    """Start and end of every compute action; SENDs and RECVs are skipped. Actions that can never run are left out."""
    times: Times = {}
    left = [[action for action in actions if action.kind.is_compute] for actions in lists]
    clocks, lookups = [Fraction(0)] * len(lists), lookup_stages(lists)
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(left):
            while (
                actions
                and (start := _start(actions[0], times, stage_to_rank, lookups, clocks[rank], hop_lag)) is not None
            ):
                action = actions.pop(0)
                clocks[rank] = start + durations[action.stage, action.kind]
                times[action] = (start, clocks[rank])
                moved = True
    return times


def _start(
    action: Action,
    times: Times,
    stage_to_rank: Sequence[int],
    lookups: Sequence[int],
    clock: Fraction,
    hop_lag: Fraction,
) -> Fraction | None:
    for alternatives in needs(action, len(stage_to_rank), lookups):
        ended = [times[other][1] for other in alternatives if other in times]
        if not ended:
            return None
        crosses = stage_to_rank[alternatives[0].stage] != stage_to_rank[action.stage]
        clock = max(clock, min(ended) + (hop_lag if crosses else 0))
    return clock
