"""GPipe, 1F1B and forward-only, drawn."""

from __future__ import annotations

import pytest

from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.forward_only import forward_only
from hybrid_runtime.schedule.gpipe import gpipe
from hybrid_runtime.schedule.one_f_one_b import one_f_one_b
from hybrid_runtime.schedule.render import render


def test_gpipe() -> None:
    drawing = """\
rank 0 | F0 F1 F2 B0 B1 B2
rank 1 | F0 F1 F2 B0 B1 B2"""
    assert render(gpipe(2, 3)) == drawing


def test_one_f_one_b() -> None:
    drawing = """\
rank 0 | F0 F1 F2 B0 F3 B1 B2 B3
rank 1 | F0 F1 B0 F2 B1 F3 B2 B3
rank 2 | F0 B0 F1 B1 F2 B2 F3 B3"""
    assert render(one_f_one_b(3, 4)) == drawing


def test_one_f_one_b_with_fewer_microbatches_than_ranks() -> None:
    drawing = """\
rank 0 | F0 F1 B0 B1
rank 1 | F0 F1 B0 B1
rank 2 | F0 F1 B0 B1
rank 3 | F0 B0 F1 B1"""
    assert render(one_f_one_b(4, 2)) == drawing


def test_one_rank_goes_forward_and_backward_in_turn() -> None:
    assert render(one_f_one_b(1, 3)) == "rank 0 | F0 B0 F1 B1 F2 B2"


def test_forward_only() -> None:
    drawing = """\
rank 0 | F0 F1 F2
rank 1 | F0 F1 F2"""
    assert render(forward_only(2, 3)) == drawing


@pytest.mark.parametrize("generator", [gpipe, one_f_one_b])
def test_each_rank_has_its_own_stage(generator: object) -> None:
    assert callable(generator)
    for rank, actions in enumerate(generator(4, 5)):
        assert {action.stage for action in actions} == {rank}
        assert {action.kind for action in actions} == {Kind.F, Kind.B}
