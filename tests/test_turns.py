from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hybrid_runtime.records import AGAINST, PLANTED, SPEED, TRACE
from hybrid_runtime.turns import Turn, Turns, finish, give_turn, rounds, stop


def turn(side: str, block: int, purpose: str = SPEED) -> Turn:
    return Turn(side, block, purpose, 1, 11)


def test_rounds_alternate_so_that_a_drift_hits_all_alike() -> None:
    order = " ".join(f"{side[0]}.{purpose}" for side, purpose in rounds(1, 4, baseline=True))
    assert order == ("c.trace c.speed b.speed b.speed c.speed c.trace c.trace c.speed b.speed b.speed c.speed c.trace")
    assert [*rounds(3, 3, baseline=True)] == [*rounds(1, 1, baseline=True)]
    assert [purpose for _, purpose in rounds(1, 2, baseline=False)] == [TRACE, SPEED, SPEED, TRACE]
    assert [*rounds(1, 2, {TRACE}, baseline=True)] == [("candidate", TRACE)] * 2
    assert [side for side, _ in rounds(1, 2, {SPEED}, baseline=True)] == [
        "candidate",
        "baseline",
        "baseline",
        "candidate",
    ]


def test_a_side_runs_exactly_the_blocks_it_is_given(tmp_path: Path) -> None:
    ran: list[Turn] = []

    def side(name: str) -> None:
        turns = Turns(tmp_path, name)
        block = 0
        while (given := turns.wait_for(block, 10)) is not None:
            ran.append(given)
            turns.done(block)
            block += 1

    names = ("candidate", "baseline", "baseline-tp_only")
    sides = [threading.Thread(target=side, args=(name,)) for name in names]
    for thread in sides:
        thread.start()
    order = [turn("candidate", 0, TRACE), turn("baseline", 0), turn("baseline", 1), turn("candidate", 1, PLANTED)]
    for given in order:
        give_turn(tmp_path, given, lambda: None)
    finish(tmp_path, "baseline", 2)
    sides[1].join(10)
    assert not sides[1].is_alive()
    assert sides[0].is_alive()
    last = turn("candidate", 2, f"{AGAINST}tp_only")
    give_turn(tmp_path, last, lambda: None)
    stop(tmp_path)
    for thread in sides:
        thread.join(10)
    assert ran == [*order, last]


def test_another_sides_long_turn_is_waited_for_and_told_of(tmp_path: Path) -> None:
    """As long as its steps may take together; meanwhile the ranks behind this one hear that it still waits."""
    told: list[int] = []
    waiting = threading.Thread(
        target=lambda: Turns(tmp_path, "candidate").wait_for(1, 0.2, still=lambda: told.append(1))
    )
    give = threading.Thread(
        target=lambda: give_turn(tmp_path, turn("baseline", 1), lambda: None, wanted=lambda: waiting.is_alive())
    )
    waiting.start()
    give.start()
    waiting.join(0.8)
    assert waiting.is_alive()
    assert len(told) >= 3
    stop(tmp_path)
    waiting.join(5)
    assert not waiting.is_alive()


def test_waiting_ends(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="no turn for candidate block 2 within 0 s"):
        Turns(tmp_path, "candidate").wait_for(2, 0.01)


def test_a_side_that_died_ends_the_waiting_for_it(tmp_path: Path) -> None:
    class Died(Exception):
        pass

    def alive() -> None:
        raise Died

    with pytest.raises(Died):
        give_turn(tmp_path, turn("candidate", 1), alive)


def test_nobody_waits_for_a_side_that_dropped_out(tmp_path: Path) -> None:
    give_turn(tmp_path, turn("baseline", 1), lambda: None, wanted=lambda: False)
    assert not (tmp_path / "next").exists()
