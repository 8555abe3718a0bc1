"""The chain that a step cannot be shorter than."""

from __future__ import annotations

from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.critical_path import critical_path
from hybrid_runtime.schedule.one_f_one_b import one_f_one_b
from hybrid_runtime.schedule.replay import replay

DURATIONS = {(stage, kind): time for stage in (0, 1) for kind, time in ((Kind.F, 1), (Kind.B, 2))}


def test_the_path_of_1f1b() -> None:
    path = critical_path(replay(one_f_one_b(2, 2), (0, 1), DURATIONS))
    messages = ("SEND_F", "SEND_B")
    compute = [str(timed.action) for timed in path.actions if timed.action.kind.value not in messages]
    assert compute == ["0F0", "1F0", "1B0", "1F1", "1B1", "0B1"]
    assert [str(timed.action) for timed in path.actions if timed.action.kind.value in messages] == [
        "0SEND_F0",
        "1SEND_B1",
    ]
    assert path.by_kind == {"F": 3, "B": 6}
    assert path.by_rank == {0: 3, 1: 6}


def test_lags_are_on_the_path() -> None:
    path = critical_path(replay(one_f_one_b(2, 2), (0, 1), DURATIONS, hop_lag=1))
    assert path.by_kind == {"F": 3, "B": 6, "hop": 2}


def test_one_rank_is_its_own_path() -> None:
    path = critical_path(replay(one_f_one_b(1, 2), (0,), DURATIONS))
    assert [str(timed.action) for timed in path.actions] == ["0F0", "0B0", "0F1", "0B1"]
    assert path.by_rank == {0: 6}
