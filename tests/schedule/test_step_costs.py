"""Messages, collectives and missing times in the replay, on steps small enough to be counted by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.account import outstanding_messages, rank_times
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.critical_path import critical_path
from hybrid_runtime.schedule.replay import Replay, replay_step
from hybrid_runtime.schedule.step_costs import Hop, StepCosts, activation_bytes
from tests.schedule.drawn import read_drawing

F1_B2 = {(stage, kind): time for stage in (0, 1) for kind, time in ((Kind.F, 1), (Kind.B, 2))}
SENDS = {(0, Kind.SEND_F): 12, (1, Kind.SEND_B): 12}


def times(step: Replay) -> str:
    """Start of every action, rank after rank."""
    return " | ".join(" ".join(f"{timed.action}@{timed.start}" for timed in rank) for rank in step.ranks)


FORWARD = read_drawing("""
rank 0 | F0 F1 F2
rank 1 | F0 F1 F2""")


def test_messages_of_an_edge_follow_each_other() -> None:
    hop = Hop(latency=1, bandwidth=6)  # 12 bytes: 2, so the edge is busy until 3, 5 and 7
    step = replay_step(FORWARD, (0, 1), StepCosts(F1_B2, hop=hop, message_bytes=SENDS))
    assert times(step) == "0F0@0 0F1@1 0F2@2 | 1F0@4 1F1@6 1F2@8"
    assert outstanding_messages(step) == {"0>1": 2}


def test_latency_alone_lets_messages_overlap() -> None:
    step = replay_step(FORWARD, (0, 1), StepCosts(F1_B2, hop=Hop(latency=3), message_bytes=SENDS))
    assert times(step) == "0F0@0 0F1@1 0F2@2 | 1F0@4 1F1@5 1F2@6"


def test_every_edge_has_its_own_hop() -> None:
    lists = read_drawing("""
rank 0 | F0 B0
rank 1 | F0 B0""")
    costs = StepCosts(F1_B2, hop=Hop(latency=1), hops={(1, 0): Hop(Fraction(1, 2), bandwidth=24)}, message_bytes=SENDS)
    assert times(replay_step(lists, (0, 1), costs)) == "0F0@0 0B0@6 | 1F0@2 1B0@3"


def test_nothing_moves_before_the_receive_is_posted() -> None:
    late = read_drawing("""
rank 0 | F0 0SEND_F0 F1 0SEND_F1
rank 1 | 1RECV_F0 F0 1RECV_F1 F1""")
    costs = StepCosts(F1_B2, hop=Hop(latency=2), message_bytes=SENDS)
    assert times(replay_step(late, (0, 1), costs)) == "0F0@0 0F1@1 | 1F0@3 1F1@6"
    early = read_drawing("""
rank 0 | F0 0SEND_F0 F1 0SEND_F1
rank 1 | 1RECV_F0 1RECV_F1 F0 F1""")
    assert times(replay_step(early, (0, 1), costs)) == "0F0@0 0F1@1 | 1F0@3 1F1@4"


def test_a_blocking_hop_occupies_both_ranks() -> None:
    #      time 0  1  2  3  4  5  6
    # rank 0    F0 >> >> F1 >> >> .
    # rank 1    .  >> >> F0 >> >> F1
    costs = StepCosts(F1_B2, hop=Hop(bandwidth=6, blocking=True), message_bytes=SENDS)
    lists = tuple(actions[:2] for actions in FORWARD)
    step = replay_step(lists, (0, 1), costs)
    assert times(step) == "0F0@0 0F1@3 | 1F0@3 1F1@6"
    assert step.makespan == 7
    first, second = rank_times(step)
    assert (first.compute, first.messages, first.cool_down) == (2, 4, 1)
    assert (second.compute, second.messages, second.warm_up) == (2, 4, 1)
    assert critical_path(step).by_kind == {"F": 3, "hop": 4}

    lowered = read_drawing("""
rank 0 | F0 0SEND_F0 F1 0SEND_F1
rank 1 | 1RECV_F0 1RECV_F1 F0 F1""")
    assert replay_step(lowered, (0, 1), costs).ranks == step.ranks


def test_a_blocking_hop_with_latency() -> None:
    costs = StepCosts(F1_B2, hop=Hop(latency=5, bandwidth=6, blocking=True), message_bytes=SENDS)
    step = replay_step(tuple(actions[:1] for actions in FORWARD), (0, 1), costs)
    assert times(step) == "0F0@0 | 1F0@8"
    assert critical_path(step).by_kind == {"F": 2, "hop": 7}


def test_collectives_occupy_but_are_not_compute() -> None:
    costs = StepCosts(F1_B2, tensor_parallel={(0, Kind.F): 1, (1, Kind.F): 3})
    step = replay_step(FORWARD, (0, 1), costs)
    assert times(step) == "0F0@0 0F1@2 0F2@4 | 1F0@2 1F1@6 1F2@10"
    assert (step.busy, step.idle, step.bubble) == ((3, 3), (11, 11), 1 - Fraction(6, 28))
    first, second = rank_times(step)
    assert (first.tensor_parallel, first.warm_up, first.waiting, first.cool_down) == (3, 0, {}, 8)
    assert (second.tensor_parallel, second.warm_up, second.waiting, second.cool_down) == (9, 2, {}, 0)
    path = critical_path(step)
    assert path.by_kind == {"F": 4, "tensor_parallel": 10}
    assert path.by_rank == {0: 2, 1: 12}


def test_b_is_i_and_w_where_it_has_no_time_of_its_own() -> None:
    costs = StepCosts({(0, Kind.I): 2, (0, Kind.W): 1}, tensor_parallel={(0, Kind.I): 5})
    assert (costs.compute(0, Kind.B), costs.collectives(0, Kind.B)) == (3, 5)
    own = StepCosts({**costs.durations, (0, Kind.B): 2}, tensor_parallel={(0, Kind.B): 1})
    assert (own.compute(0, Kind.B), own.collectives(0, Kind.B)) == (2, 1)


def test_a_missing_time_is_named() -> None:
    with pytest.raises(PlanError, match="no duration is given for F of stage 1; give"):
        replay_step(FORWARD, (0, 1), StepCosts({(0, Kind.F): 1}))


def test_activation_bytes_free_what_they_keep() -> None:
    found = activation_bytes([101, 10], Fraction(1, 2))
    for stage, kept in enumerate((101, 10)):
        assert found.kept[stage, Kind.F] == kept == found.freed[stage, Kind.B]
        assert found.freed[stage, Kind.I] + found.freed[stage, Kind.W] == kept
