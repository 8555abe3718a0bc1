from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hybrid_runtime.turns import Turns, abba, give_turn, stop


def test_blocks_alternate_so_that_a_drift_hits_both_sides() -> None:
    order = [f"{side[0]}{block}" for side, block in abba(4)]
    assert order == ["c1", "b1", "b2", "c2", "c3", "b3", "b4", "c4"]


def test_a_side_runs_exactly_the_blocks_it_is_given(tmp_path: Path) -> None:
    ran: list[str] = []

    def side(name: str) -> None:
        turns = Turns(tmp_path, name)
        block = 1
        while turns.wait_for(block, 10):
            ran.append(f"{name} {block}")
            turns.done(block)
            block += 1

    sides = [threading.Thread(target=side, args=(name,)) for name in ("candidate", "baseline")]
    for thread in sides:
        thread.start()
    for name, block in abba(3):
        give_turn(tmp_path, name, block, lambda: None)
    stop(tmp_path)
    for thread in sides:
        thread.join(10)
    assert ran == [f"{name} {block}" for name, block in abba(3)]


def test_waiting_ends(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="no turn for candidate block 2 within 0 s"):
        Turns(tmp_path, "candidate").wait_for(2, 0.01)


def test_a_side_that_died_ends_the_waiting_for_it(tmp_path: Path) -> None:
    class Died(Exception):
        pass

    def alive() -> None:
        raise Died

    with pytest.raises(Died):
        give_turn(tmp_path, "candidate", 1, alive)


def test_nobody_waits_for_a_side_that_dropped_out(tmp_path: Path) -> None:
    give_turn(tmp_path, "baseline", 1, lambda: None, wanted=lambda: False)
    assert not (tmp_path / "next").exists()
