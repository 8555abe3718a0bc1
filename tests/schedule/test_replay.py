"""Replay against figures computed independently for these schedules: makespan, idle time, bubble to two decimals."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.gpipe import gpipe
from hybrid_runtime.schedule.one_f_one_b import one_f_one_b
from hybrid_runtime.schedule.registry import generate
from hybrid_runtime.schedule.replay import Replay, Time, replay
from tests.schedule.drawn import read_drawing

EQUAL = (Fraction(1), Fraction(2))  # F, B with F = I = W
MEASURED = (Fraction(1), Fraction("2.05"))  # F : I : W = 1 : 1.15 : 0.9
HOPS_PERCENT = (0, 2, 5, 10)  # of F


def step(name: str, pp_degree: int, num_microbatches: int, times: tuple[Fraction, Fraction], hop: Time = 0) -> Replay:
    lists = generate(name, pp_degree, num_microbatches, "train")
    durations = {(stage, kind): time for stage in range(pp_degree) for kind, time in zip((Kind.F, Kind.B), times)}
    return replay(lists, range(pp_degree), durations, hop_lag=hop)


@pytest.mark.parametrize(("pp_degree", "num_microbatches", "makespan"), [(3, 12, 42), (4, 16, 57), (8, 32, 117)])
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_makespan(name: str, pp_degree: int, num_microbatches: int, makespan: int) -> None:
    replayed = step(name, pp_degree, num_microbatches, EQUAL)
    assert replayed.makespan == makespan
    assert replayed.idle == (3 * (pp_degree - 1),) * pp_degree


@pytest.mark.parametrize(
    ("name", "pp_degree", "num_microbatches", "times", "bubbles_percent"),
    [
        ("gpipe", 3, 12, MEASURED, "14.29 14.45 14.69 15.08"),
        ("1f1b", 3, 12, MEASURED, "14.29 15.00 16.06 17.75"),
        ("gpipe", 4, 16, EQUAL, "15.79 15.97 16.23 16.67"),
        ("1f1b", 4, 16, EQUAL, "15.79 16.61 17.81 19.73"),
        ("gpipe", 4, 16, MEASURED, "15.79 15.96 16.22 16.65"),
        ("1f1b", 4, 16, MEASURED, "15.79 16.60 17.78 19.67"),
        ("gpipe", 8, 32, EQUAL, "17.95 18.14 18.44 18.92"),
        ("1f1b", 8, 32, EQUAL, "17.95 18.89 20.27 22.46"),
        ("gpipe", 8, 32, MEASURED, "17.95 18.14 18.43 18.90"),
        ("1f1b", 8, 32, MEASURED, "17.95 18.88 20.23 22.39"),
    ],
)
def test_bubble(
    name: str, pp_degree: int, num_microbatches: int, times: tuple[Fraction, Fraction], bubbles_percent: str
) -> None:
    found = [step(name, pp_degree, num_microbatches, times, Fraction(hop, 100)).bubble * 100 for hop in HOPS_PERCENT]
    assert " ".join(f"{float(bubble):.2f}" for bubble in found) == bubbles_percent


def test_starts_and_ends() -> None:
    #                  time 0  1  2  3  4  5  6  7  8
    # rank 0 | F0 F1 B0 B1  F0 F1 .  .  B0 B0 .  B1 B1
    # rank 1 | F0 B0 F1 B1  .  F0 B0 B0 F1 B1 B1 .  .
    ranks = step("1f1b", 2, 2, EQUAL).ranks
    assert [(str(timed.action), timed.start, timed.end) for timed in ranks[0]] == [
        ("0F0", 0, 1),
        ("0F1", 1, 2),
        ("0B0", 4, 6),
        ("0B1", 7, 9),
    ]
    assert [(str(timed.action), timed.start, timed.end) for timed in ranks[1]] == [
        ("1F0", 1, 2),
        ("1B0", 2, 4),
        ("1F1", 4, 5),
        ("1B1", 5, 7),
    ]


def test_no_lag_between_stages_on_one_rank_and_gradients_leave_with_i() -> None:
    lists = read_drawing("""
rank 0 | 0F0 3F0 3I0 3W0 0I0 0W0
rank 1 | 1F0 2F0 2I0 1I0 2W0 1W0""")
    durations = {(stage, kind): 1 for stage in range(4) for kind in Kind}
    replayed = replay(lists, (0, 1, 1, 0), durations, hop_lag=10)
    # F: 0, +10, 1, 2 (no hop), +10, 3; then I the same way back; 4 hops and 8 actions before the last W
    assert replayed.makespan == 8 + 4 * 10 + 1
    assert replayed.busy == (6, 6)


def test_unequal_stages_wait_for_the_slowest() -> None:
    durations = {(0, Kind.F): 1, (0, Kind.B): 2, (1, Kind.F): 3, (1, Kind.B): 6}
    replayed = replay(one_f_one_b(2, 10), (0, 1), durations)
    assert replayed.makespan == 1 + 10 * 9 + 2
    assert replayed.busy == (30, 90)


def test_lists_that_cannot_finish() -> None:
    lists = gpipe(2, 2)
    with pytest.raises(PlanError, match="pipeline rank 0 can never run 0B1"):
        replay((lists[0], lists[1][:-1]), (0, 1), {(stage, kind): 1 for stage in (0, 1) for kind in Kind})
