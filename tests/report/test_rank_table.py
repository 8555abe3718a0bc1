"""Rows and columns of the live table: what fits, what is left out, and that no line is ever too wide."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.cells import cell_len

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.report.progress import EXTREMES, RankLoad
from hybrid_runtime.report.rank_table import chosen, rank_table
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.run_folder import RunFolder
from tests.report.running import load, write_members


def table(roster: Roster, loads: list[RankLoad], width: int, room: int = 70, left_out: int = 0) -> list[str]:
    return [text.plain for text in rank_table(loads, left_out, roster.member, roster.doing, width=width, room=room)]


def test_a_row_tells_place_stage_device_shares_memory_rate_and_what_is_being_done(tmp_path: Path) -> None:
    roster = write_members(RunFolder(tmp_path), Mesh(tp_degree=2, pp_degree=3))
    rows = table(roster, [load(3), load(4, busy_percent=None, memory_bytes=None)], width=80)
    assert rows == [
        "rank dp/pp/tp stage device   busy % wait %     memory tokens/s now",
        "3    0/1/1    1     vm:rank3   53.0   20.0    3.4 MiB      890 1F3",
        "4    0/2/0    2     vm:rank4    n/a   20.0        n/a      890 2F4",
    ]


def test_narrow_terminals_lose_the_least_important_columns_first(tmp_path: Path) -> None:
    roster = write_members(RunFolder(tmp_path), Mesh(tp_degree=2))
    assert "##########" in table(roster, [load(0, busy_percent=99.0)], width=200)[1]
    headings = {width: " ".join(table(roster, [load(0)], width)[0].split()) for width in (80, 60, 40, 25, 10)}
    assert headings[80] == "rank dp/pp/tp stage device busy % wait % memory tokens/s now"
    assert headings[60] == "rank dp/pp/tp stage busy % wait % memory now"
    assert headings[40] == "rank busy % wait % memory"
    assert headings[25] == "rank busy % wait %"
    assert headings[10] == "rank busy"


@pytest.mark.parametrize("width", [1, 10, 20, 40, 60, 79, 80, 81, 100, 200])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    long = write_members(
        RunFolder(tmp_path), Mesh(tp_degree=4), device="GPU-{rank}a7b1c2d-漢字漢字漢字漢字-0123456789abcdef"
    )
    for left_out in (0, 900):
        rows = table(long, [load(k, tokens_per_s=123456.0) for k in range(4)], width, left_out=left_out)
        assert max(map(cell_len, rows)) <= width


def test_a_hostile_device_name_cannot_move_the_cursor(tmp_path: Path) -> None:
    roster = write_members(RunFolder(tmp_path), Mesh(), device="\x1b[2J[red]")
    assert "\\x1b[2J[red]" in table(roster, [load(0)], width=120)[1]


def test_where_not_all_fit_the_idlest_and_the_busiest_are_shown_around_the_rest(tmp_path: Path) -> None:
    roster = write_members(RunFolder(tmp_path), Mesh(tp_degree=8, pp_degree=8))
    loads = [load(rank, busy_percent=float((rank * 37) % 64)) for rank in range(64)]
    rows = table(roster, loads, width=80, room=8)
    assert len(rows) == 1 + 8
    assert [float(row.split()[4]) for row in (*rows[1:5], *rows[6:])] == [0, 1, 2, 3, 61, 62, 63]
    assert rows[5] == "... 57 more ranks, busy between 3.0 and 61.0 %"
    assert len(table(roster, loads, width=80, room=64)) == 1 + 64


def test_of_a_thousand_ranks_only_true_extremes_are_shown(tmp_path: Path) -> None:
    told = [load(rank) for rank in range(64)]
    top, bottom = chosen(told, left_out=936, room=60)
    assert (len(top), len(bottom)) == (EXTREMES, EXTREMES)
    rows = table(Roster(RunFolder(tmp_path)), told, width=80, room=5, left_out=936)
    assert rows[3] == "... 996 more ranks, busy between 51.0 and 112.0 %"


@pytest.mark.parametrize("room", [1, 2, 3])
def test_little_room_never_overflows(tmp_path: Path, room: int) -> None:
    rows = table(Roster(RunFolder(tmp_path)), [load(rank) for rank in range(6)], width=80, room=room)
    assert len(rows) == 1 + room
    assert any(f"... {6 - room + 1} more ranks" in row for row in rows)


def test_before_headers_and_status_are_written_there_are_dashes(tmp_path: Path) -> None:
    row = table(Roster(RunFolder(tmp_path)), [load(0)], width=80)[1]
    assert row.split() == ["0", "-", "-", "-", "50.0", "20.0", "3.4", "MiB", "890", "-"]
