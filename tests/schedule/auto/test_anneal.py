"""Annealing keeps every order runnable and within its limits, and its fast replays are right."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hybrid_runtime.schedule.auto import loops
from hybrid_runtime.schedule.auto.anneal import Chain, shorten_all
from hybrid_runtime.schedule.auto.problem import Ints, Problem, make_problem, to_lists, to_order
from hybrid_runtime.schedule.placement import v_shape
from hybrid_runtime.schedule.registry import generate
from hybrid_runtime.schedule.replay import replay_step
from tests.schedule.auto.cases import v_costs

COSTS = v_costs(4, first_chunk="0.42")


def start(limit: int) -> tuple[Problem, Ints]:
    problem = make_problem(v_shape(4), 8, COSTS, [limit] * 4)
    order = to_order(generate("zb_v", 4, 8, "train"), problem)
    assert order is not None
    return problem, order


def test_every_try_leaves_a_true_state() -> None:
    problem, order = start(10)
    chain = Chain(problem, order, 7)
    state = chain._state
    rng = random.Random(0)
    taken = 0
    for number in range(3000):
        rank, source = rng.randrange(4), rng.randrange(48)
        target = source + rng.choice((-3, -2, -1, 1, 2, 3))
        if not 0 <= target < 48:
            continue
        before = state.order.copy()
        allowed = int(state.ends.max()) + rng.choice((0, 0, 40))
        found = loops.attempt(rank, source, target, allowed, loops.ANY, state)
        taken += found != loops.TOO_LATE
        assert np.array_equal(state.ends, state.trial)
        if found == loops.TOO_LATE:
            assert np.array_equal(before, state.order)
        else:
            assert found <= allowed
        if number % 50 == 0:
            fresh = Chain(problem, state.order, 0)._state
            for name in ("ends", "which", "held"):
                assert np.array_equal(getattr(state, name), getattr(fresh, name)), name
    assert taken > 100


@pytest.mark.parametrize("limit", [8, 10])
def test_a_round_shortens_and_a_last_one_evens_out(limit: int) -> None:
    problem, order = start(limit)
    chain = Chain(problem, order, 3)
    first = chain.makespan
    assert list(chain.shorten(1e-4, problem.bound))[-1] == 1
    assert problem.bound <= chain.makespan < first
    before = chain.makespan, max(chain.peaks) * 4 - sum(chain.peaks)
    list(chain.even_out())
    assert chain.makespan <= before[0]
    assert max(chain.peaks) * 4 - sum(chain.peaks) <= before[1]
    step = replay_step(to_lists(chain.best, problem), v_shape(4), COSTS)
    assert step.makespan == chain.makespan * problem.tick
    assert [peak.num_bytes for peak in step.peaks] == chain.peaks
    assert max(chain.peaks) <= limit


def test_unequal_peaks_are_evened_out() -> None:
    # Rank 0 may hold more than it needs to: its first forwards run ahead of everybody's.
    problem, order = start(16)
    ahead = order.copy()
    ahead[0] = [0] * 8 + [stream for stream in order[0] if stream != 0]
    chain = Chain(problem, ahead, 5)
    uneven = max(chain.peaks) * 4 - sum(chain.peaks)
    assert uneven > 0
    makespan = chain.makespan
    list(chain.even_out())
    assert max(chain.peaks) * 4 - sum(chain.peaks) == 0
    assert chain.makespan <= makespan


def test_chains_stop_at_the_goal() -> None:
    problem, order = start(10)
    chains = [Chain(problem, order, seed) for seed in (1, 2)]
    goal = chains[0].makespan - 1
    assert len(list(shorten_all(chains, goal))) == 1
    assert min(chain.makespan for chain in chains) <= goal


def test_random_numbers_are_uniform_and_repeat() -> None:
    random_state = np.array([12345], np.int64)
    drawn = [loops.draw(random_state) for _ in range(10_000)]
    assert all(0 < number < 1 for number in drawn)
    assert sum(drawn) / 10_000 == pytest.approx(0.5, abs=0.02)
    assert loops.draw(np.array([12345], np.int64)) == drawn[0] != drawn[1]
