"""Random schedules that can finish, for any placement: what a replay has to get right without knowing a generator."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.dependencies import needs
from hybrid_runtime.schedule.lookups import with_lookups


def random_placement(rng: random.Random) -> tuple[int, ...]:
    """1 to 4 ranks, 1 to 3 stages on each, anywhere."""
    placement = [rank for rank in range(rng.randint(1, 4)) for _ in range(rng.randint(1, 3))]
    rng.shuffle(placement)
    return tuple(placement)


def random_lists(rng: random.Random, stage_to_rank: Sequence[int], num_microbatches: int) -> tuple[ActionList, ...]:
    """Every (stage, microbatch) with F and either B or I and W, in an order drawn among all that can finish."""
    waiting = []
    for stage in range(len(stage_to_rank)):
        for microbatch in range(num_microbatches):
            backward = (Kind.B,) if rng.random() < 0.5 else (Kind.I, Kind.W)
            waiting += [Action(stage, kind, microbatch) for kind in (Kind.F, *backward)]
    lists: list[list[Action]] = [[] for _ in range(max(stage_to_rank) + 1)]
    done: set[Action] = set()
    while waiting:
        ready = [
            action
            for action in waiting
            if all(done.intersection(alternatives) for alternatives in needs(action, len(stage_to_rank)))
        ]
        action = rng.choice(ready)
        waiting.remove(action)
        done.add(action)
        lists[stage_to_rank[action.stage]].append(action)
    return tuple(map(tuple, lists))


def random_lookups(
    rng: random.Random, lists: Sequence[ActionList], stage_to_rank: Sequence[int]
) -> tuple[ActionList, ...]:
    """The same with the lookups of some ranks, put where `with_lookups` would for some other durations."""
    durations = random_durations(rng, len(stage_to_rank))
    ranks = [rank for rank in range(len(lists)) if rng.random() < 0.7]
    return with_lookups(lists, stage_to_rank, ranks, durations)


def random_durations(rng: random.Random, num_stages: int) -> dict[tuple[int, Kind], Fraction]:
    """Thirds and sevenths, zero included."""
    kinds = (Kind.F, Kind.I, Kind.W, Kind.B, Kind.EF, Kind.EB)
    return {
        (stage, kind): Fraction(rng.randint(0, 9), rng.choice((1, 3, 7)))
        for stage in range(num_stages)
        for kind in kinds
    }
