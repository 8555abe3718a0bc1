"""Idle time with its reason, and messages that pile up."""

from __future__ import annotations

from hybrid_runtime.schedule.account import RankTime, outstanding_messages, rank_times
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.one_f_one_b import one_f_one_b
from hybrid_runtime.schedule.replay import replay
from tests.schedule.drawn import read_drawing


def test_idle_time_has_a_reason() -> None:
    #      time 0  1  2  3  4  5  6  7  8
    # rank 0    F0 F1 .  .  B0 B0 .  B1 B1
    # rank 1    .  F0 B0 B0 F1 B1 B1 .  .
    durations = {(stage, kind): time for stage in (0, 1) for kind, time in ((Kind.F, 1), (Kind.B, 2))}
    assert rank_times(replay(one_f_one_b(2, 2), (0, 1), durations)) == (
        RankTime(compute=6, tensor_parallel=0, messages=0, warm_up=0, waiting={1: 3}, cool_down=0),
        RankTime(compute=6, tensor_parallel=0, messages=0, warm_up=1, waiting={}, cool_down=2),
    )


def test_a_middle_rank_waits_for_both_neighbours() -> None:
    durations = {(stage, kind): time for stage in range(3) for kind, time in ((Kind.F, 1), (Kind.B, 2))}
    durations[0, Kind.F] = durations[2, Kind.B] = 10
    middle = rank_times(replay(one_f_one_b(3, 2), (0, 1, 2), durations, hop_lag=1))[1]
    # 1F0 11-12, 1F1 21-22 (0F1 ends at 20), 2F0 13-14, 2B0 14-24, 1B0 25-27, 2F1 24-25, 2B1 25-35, 1B1 36-38
    assert (middle.warm_up, middle.waiting, middle.cool_down) == (11, {0: 9, 2: 12}, 3)


def test_outstanding_messages_are_those_sent_and_not_taken() -> None:
    lists = read_drawing("""
rank 0 | 0F0 0F1 0F2
rank 1 | 1F0 1F1 1F2""")
    slow_taker = {(0, Kind.F): 1, (1, Kind.F): 10}
    assert outstanding_messages(replay(lists, (0, 1), slow_taker)) == {"0>1": 2}
    assert outstanding_messages(replay(lists, (0, 1), slow_taker, hop_lag=5)) == {"0>1": 3}
    assert outstanding_messages(replay(lists, (0, 0), slow_taker | {(0, Kind.F): 1})) == {}
