"""Every schedule, run for real, gives what plain autograd gives: I and W, several stages on a rank, V placement."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hybrid_runtime.schedule.actions import ActionList, Kind, parse_actions
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.registry import SCHEDULES, find_schedule, generate
from hybrid_runtime.telemetry.ledger import ByteLedger
from tests.pipeline.examples import ALONE, Parallel, run
from tests.ranks import run_ranks

V = (0, 1, 1, 0)
ZB_H1 = (
    "0F0 0F1 0I0 0W0 0F2 0I1 0W1 0F3 0I2 0W2 0I3 0W3",
    "1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1F3 1I3 1W2 1W3",
)
ZB_V = (
    "0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0F3 0I0 0W0 3F2 3I2 3W2 0I1 0W1 3F3 3I3 3W3 0I2 0W2 0I3 0W3",
    "1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1F3 1I1 1W1 2F3 2I2 2W2 1I2 2I3 1I3 1W2 2W3 1W3",
)
LATE_V = (  # all W at the end: everything that a W reads must outlive many receives
    "0F0 0F1 3F0 3I0 0F2 3F1 3I1 0F3 0I0 3F2 3I2 0I1 3F3 3I3 0I2 0I3 3W0 3W1 3W2 3W3 0W0 0W1 0W2 0W3",
    "1F0 2F0 2I0 1F1 2F1 2I1 1I0 1F2 2F2 2I2 1I1 1F3 2F3 2I3 1I2 1I3 2W0 2W1 2W2 2W3 1W0 1W1 1W2 1W3",
)


def golden(rank: int) -> None:
    for rows, place in ((ZB_H1, (0, 1)), (ZB_V, V), (LATE_V, V)):
        lists = lower([parse_actions(row.split()) for row in rows], place)
        run(lists, place, 4)
        run(lists, place, 4, middle=Parallel)
        buffers_return(lists, place)


def buffers_return(lists: Sequence[ActionList], place: tuple[int, ...]) -> None:
    """No more buffers after one step than after three, and nothing stays counted as an activation."""
    allocated, held = [], []
    for steps in (1, 3):
        ledger = ByteLedger(())
        with ledger.watching():
            executor = run(lists, place, 4, steps=steps, middle=Parallel, ends=ALONE, ledger=ledger)
        assert ledger.in_use.activations == 0
        receivers = executor._receivers.values()
        allocated.append(sum(receiver.pool.allocated for receiver in receivers))
        held.append(ledger.in_use.buffers)
    assert allocated[0] == allocated[1]
    assert held[0] == held[1]


@pytest.mark.ranks
def test_golden_lists_on_two_ranks() -> None:
    run_ranks(2, golden)


def all_schedules(rank: int, pp_degree: int) -> None:
    for name in SCHEDULES:
        place = find_schedule(name).place(pp_degree)
        lists = lower(generate(name, pp_degree, 2 * pp_degree, "train"), place)
        run(lists, place, 2 * pp_degree, middle=Parallel, steps=1)


@pytest.mark.ranks
@pytest.mark.parametrize("pp_degree", [2, 3, 4])
def test_every_schedule(pp_degree: int) -> None:
    run_ranks(pp_degree, all_schedules, pp_degree)


def three_stages_on_a_rank(rank: int) -> None:
    for name in ("interleaved_1f1b", "interleaved_zb"):
        place = find_schedule(name).place(2, 3)
        run(lower(generate(name, 2, 4, "train", 3), place), place, 4, middle=Parallel, steps=1)


@pytest.mark.ranks
def test_three_stages_on_a_rank() -> None:
    run_ranks(2, three_stages_on_a_rank)


def test_schedules_cover_all_kinds() -> None:
    kinds = {action.kind for name in SCHEDULES for row in generate(name, 2, 4, "train") for action in row}
    assert kinds == {Kind.F, Kind.B, Kind.I, Kind.W}
