"""The search sees the same times and bytes as the replay, and its bound is one."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.auto.anneal import Chain
from hybrid_runtime.schedule.auto.problem import make_problem, to_lists, to_order
from hybrid_runtime.schedule.placement import v_shape
from hybrid_runtime.schedule.registry import find_schedule, generate
from hybrid_runtime.schedule.replay import replay_step
from hybrid_runtime.schedule.step_costs import Hop, StepCosts, activation_bytes
from tests.schedule.auto.cases import v_costs

HOPS = [Hop(), Hop(Fraction(1, 7)), Hop(Fraction(1, 7), 30, blocking=True), Hop(bandwidth=40, blocking=True)]


@pytest.mark.parametrize("hop", HOPS)
@pytest.mark.parametrize("name", ["zb_v", "v_half", "v_min"])
def test_same_makespan_and_peaks_as_the_replay(name: str, hop: Hop) -> None:
    costs = v_costs(4, hop, first_chunk="0.35")
    lists = generate(name, 4, 6, "train")
    problem = make_problem(v_shape(4), 6, costs, None)
    order = to_order(lists, problem)
    assert order is not None
    assert to_lists(order, problem) == lists
    chain, step = Chain(problem, order, 0), replay_step(lists, v_shape(4), costs)
    assert chain.makespan * problem.tick == step.makespan
    assert chain.peaks == [peak.num_bytes for peak in step.peaks]


@pytest.mark.parametrize("seed", range(20))
def test_no_schedule_beats_the_bound(seed: int) -> None:
    rng = random.Random(seed)
    name = rng.choice(["1f1b", "zb_h1", "zb_h2", "interleaved_zb", "interleaved_1f1b", "zb_v", "dualpipe_v"])
    placement = find_schedule(name).place(3)
    durations = {
        (k, kind): Fraction(rng.randint(0, 9), rng.choice((1, 3)))
        for k in range(len(placement))
        for kind in (Kind.F, Kind.I, Kind.W)
    }
    if rng.random() < 0.5:  # a whole backward may take less than its halves
        durations |= {(k, Kind.B): max(durations[k, Kind.I], durations[k, Kind.W]) for k in range(len(placement))}
    hop = Hop(rng.randint(0, 3), rng.choice((None, 2)), blocking=rng.random() < 0.5)
    costs = StepCosts(durations, hop=hop, message_bytes={(0, Kind.SEND_F): 5, (1, Kind.SEND_B): 3})
    problem = make_problem(placement, 6, costs, None)
    step = replay_step(generate(name, 3, 6, "train"), placement, costs)
    assert problem.bound * problem.tick <= step.makespan


@pytest.mark.parametrize(
    ("pp_degree", "num_microbatches", "first_chunk", "percent"),
    [
        (3, 8, "0.50", "4.09"),
        (3, 8, "0.42", "3.48"),
        (3, 8, "0.25", "2.17"),
        (4, 8, "0.35", "4.35"),
        (4, 12, "0.50", "4.09"),
        (8, 16, "0.50", "6.94"),
        (8, 24, "0.30", "2.97"),
    ],
)
def test_bound_of_unequal_stages(pp_degree: int, num_microbatches: int, first_chunk: str, percent: str) -> None:
    problem = make_problem(v_shape(pp_degree), num_microbatches, v_costs(pp_degree, first_chunk=first_chunk), None)
    bubble = 1 - num_microbatches * Fraction("3.05") / (problem.bound * problem.tick)
    assert f"{float(100 * bubble):.2f}" == percent


def test_the_names_of_ranks_do_not_matter_to_the_bound() -> None:
    durations = {(k, kind): 1 + k * k for k in range(4) for kind in (Kind.F, Kind.I, Kind.W)}
    costs = StepCosts(durations, hop=Hop(2), action_bytes=activation_bytes([1] * 4))
    bounds = {make_problem(placement, 4, costs, None).bound for placement in ((0, 1, 1, 0), (1, 0, 0, 1))}
    assert len(bounds) == 1


def test_an_order_of_microbatches_that_is_not_increasing_is_no_order() -> None:
    problem = make_problem(v_shape(1), 2, v_costs(1), None)
    lists = generate("zb_v", 1, 2, "train")
    swapped = tuple(action._replace(microbatch=1 - action.microbatch) for action in lists[0])
    assert to_order((swapped,), problem) is None
