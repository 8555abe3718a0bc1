"""The replay agrees exactly with a second one written differently, on random lists; compiled and interpreted alike."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule import replay as replay_module
from hybrid_runtime.schedule.account import rank_times
from hybrid_runtime.schedule.critical_path import critical_path
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.replay import replay
from tests.schedule.random_lists import random_durations, random_lists, random_lookups, random_placement
from tests.schedule.replay_oracle import start_and_end


@pytest.mark.parametrize("seed", range(60))
def test_random_lists(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    placement = random_placement(rng)
    lists = random_lists(rng, placement, rng.randint(1, 4))
    lists = random_lookups(rng, lists, placement) if seed % 2 else lists
    durations = random_durations(rng, len(placement))
    lag = Fraction(rng.randint(0, 4), 5)
    step = replay(lists, placement, durations, hop_lag=lag)
    found = {timed.action: (timed.start, timed.end) for rank in step.ranks for timed in rank}
    assert found == start_and_end(lists, placement, durations, lag)
    assert step.makespan == max(end for _, end in found.values())

    monkeypatch.setattr(replay_module, "COMPILED_FROM", 0)
    compiled = replay(lists, placement, durations, hop_lag=lag)
    assert (compiled.starts, compiled.ends) == (step.starts, step.ends)

    for rank, parts in enumerate(rank_times(step)):
        gaps = parts.warm_up + sum(parts.waiting.values()) + parts.cool_down
        assert parts.compute + gaps == step.makespan
        assert rank not in parts.waiting
    path = critical_path(step)
    assert sum(path.by_kind.values()) == step.makespan
    assert [timed.end for timed in path.actions] == sorted(timed.end for timed in path.actions)

    # A lowered list is the same step where posting a receive early enough costs nothing.
    deep = replay(lower(lists, placement, pool_depth=1000), placement, durations, hop_lag=lag)
    assert deep.ranks == step.ranks


@pytest.mark.parametrize("seed", range(10))
def test_a_dropped_action_is_missed_by_both(seed: int) -> None:
    rng = random.Random(seed)
    placement = (0, 1, 1, 0)
    lists = [list(actions) for actions in random_lists(rng, placement, 2)]
    durations = random_durations(rng, len(placement))
    dropped = next(action for action in lists[1] if action.kind.value == "F" and action.stage == 1)
    lists[1].remove(dropped)
    times = start_and_end(tuple(map(tuple, lists)), placement, durations, Fraction(0))
    assert len(times) < sum(map(len, lists))
    stuck = [next((action for action in actions if action not in times), None) for actions in lists]
    first = next(f"pipeline rank {rank} can never run {action}:" for rank, action in enumerate(stuck) if action)
    with pytest.raises(PlanError, match=first):
        replay(tuple(map(tuple, lists)), placement, durations)


def test_times_beyond_64_bits_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "COMPILED_FROM", 0)
    rng = random.Random(5)
    placement = (0, 1, 1, 0)
    lists = random_lists(rng, placement, 3)
    durations = random_durations(rng, len(placement))
    huge = {key: time * 10**30 for key, time in durations.items()}
    assert replay(lists, placement, huge).makespan == replay(lists, placement, durations).makespan * 10**30


@pytest.mark.parametrize("seed", range(5))
def test_names_of_ranks_do_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    placement = random_placement(rng)
    lists = random_lists(rng, placement, 3)
    durations = random_durations(rng, len(placement))
    names = list(range(len(lists)))
    rng.shuffle(names)
    renamed = tuple(lists[names.index(rank)] for rank in range(len(lists)))
    there = replay(renamed, [names[rank] for rank in placement], durations, hop_lag=1)
    here = replay(lists, placement, durations, hop_lag=1)
    assert there.makespan == here.makespan
    assert all(there.ranks[names[rank]] == here.ranks[rank] for rank in range(len(lists)))
