from __future__ import annotations

from hybrid_runtime.schedule.render import render
from tests.schedule.drawn import read_drawing


def test_the_stage_is_shown_where_a_rank_has_several() -> None:
    drawing = """\
rank 0 | 0F0 3F0 3B0 0B0
rank 1 | 1F0 2F0 2B0 1B0"""
    assert render(read_drawing(drawing)) == drawing


def test_communication_is_drawn_too() -> None:
    drawing = """\
rank 0 | F0 SEND_F0
rank 1 | RECV_F0 F0"""
    assert render(read_drawing(drawing)) == drawing
