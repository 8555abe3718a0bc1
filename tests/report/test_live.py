"""The live picture at fixed sizes: it fits, follows a resize, rests the passive side, and leaves bars and figures."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.report.live import REFRESH_S, LivePicture, share_rows
from hybrid_runtime.report.progress_view import ProgressView
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.telemetry.status import StatusFile
from tests.report.running import line, load, write_members


class Terminal:
    """A terminal of a fixed size whose picture is read as text, and a clock that only a test moves."""

    def __init__(self, width: int, height: int) -> None:
        self.console = Console(
            width=width, height=height, force_terminal=True, file=io.StringIO(), color_system="truecolor"
        )
        self.now_s = 0.0
        self.picture = LivePicture(self.console, clock=lambda: self.now_s)
        self.picture.start()

    def drawn(self, *, styles: bool = False) -> list[str]:
        size = {"width": self.console.width, "height": self.console.height}  # a console of its own: this one is live
        paper = Console(**size, record=True, force_terminal=True, file=io.StringIO(), color_system="truecolor")
        paper.print(self.picture)
        return paper.export_text(styles=styles).splitlines()


@pytest.fixture
def six(tmp_path: Path) -> Roster:
    return write_members(RunFolder(tmp_path), Mesh(tp_degree=2, pp_degree=3))


@pytest.fixture
def one(tmp_path: Path) -> Roster:
    return write_members(RunFolder(tmp_path / "baseline"), Mesh())


def loads(number: int) -> dict[str, object]:
    return {"ranks": tuple(load(rank) for rank in range(number))}


def test_both_sides_at_80_by_24(six: Roster, one: Roster) -> None:
    terminal = Terminal(80, 24)
    assert terminal.drawn() == ["the ranks are starting; their first step will show here"]
    terminal.picture.show(line(3, **loads(6)), six)
    terminal.picture.show(line(2, side="baseline", **loads(1)), one)
    lines = terminal.drawn()
    assert lines[0].startswith("candidate ━")
    assert "3/40 measure" in lines[0]
    assert lines[1].rstrip() == "loss 2.513  5 343 tokens/s  383 ms/step  MFU n/a"
    assert lines[2].rstrip() == "rank dp/pp/tp stage device   busy % wait %     memory tokens/s now"
    assert [row.split()[0] for row in lines[3:9]] == list("012345")
    assert lines[8].rstrip() == "5    0/2/1    2     vm:rank5   55.0   20.0    3.4 MiB      890 2F5"
    assert lines[9].startswith("baseline  ━")
    assert lines[12].split()[:4] == ["0", "0/0/0", "0", "vm:rank0"]
    assert len(lines) == 13
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("height", [3, 5, 8, 12, 24, 50])
@pytest.mark.parametrize("ranks", [1, 6, 64])
def test_it_never_outgrows_the_terminal(tmp_path: Path, width: int, height: int, ranks: int) -> None:
    terminal = Terminal(width, height)
    terminal.picture.show(line(3, left_out=936 if ranks == 64 else 0, **loads(ranks)), Roster(RunFolder(tmp_path)))
    terminal.picture.show(line(3, side="baseline", **loads(ranks)), Roster(RunFolder(tmp_path)))
    lines = terminal.drawn()
    assert max(map(len, lines)) <= width
    if height >= 12:
        assert len(lines) < height
        assert sum(row.startswith("rank") for row in lines) == 2
        assert ("more ranks" in "".join(lines)) == (ranks > (height - 7) // 2)


def test_a_resize_is_followed_at_the_next_drawing(six: Roster) -> None:
    terminal = Terminal(200, 50)
    terminal.picture.show(line(3, **loads(6)), six)
    assert len(terminal.drawn()) == 9
    assert "#####....." in "".join(terminal.drawn())
    terminal.console.width, terminal.console.height = 40, 8
    lines = terminal.drawn()
    assert len(lines) == 7
    assert max(map(len, lines)) <= 40
    assert any("... 3 more ranks" in row or "... 4 more ranks" in row for row in lines)


def test_only_the_side_at_work_refreshes(six: Roster, one: Roster) -> None:
    terminal = Terminal(80, 24)
    terminal.picture.show(line(3, **loads(6)), six)
    terminal.drawn()
    terminal.picture.show(line(2, side="baseline", **loads(1)), one)
    for roster in (six, one):
        status = StatusFile(roster.folder.status / "rank0", 0, (0,))
        status.doing("OPTIMIZER")
        status.close()
    lines = terminal.drawn()
    assert lines[3].rstrip().endswith("0F0")
    assert lines[12].rstrip().endswith("OPTIMIZER")
    assert "\x1b[2m" in terminal.drawn(styles=True)[3]
    assert "\x1b[2m" not in terminal.drawn(styles=True)[12]


def test_bare_steps_keep_the_figures_of_the_last_measured_one(six: Roster) -> None:
    terminal = Terminal(80, 24)
    terminal.picture.show(line(3, **loads(6)), six)
    bare = tuple(load(rank, busy_percent=None, wait_percent=None, memory_bytes=1024) for rank in range(6))
    terminal.picture.show(line(4, ranks=bare), six)
    assert terminal.drawn()[3].split()[4:8] == ["50.0", "20.0", "1.0", "KiB"]


def test_the_newest_validation_stays_in_the_picture(six: Roster) -> None:
    terminal = Terminal(80, 24)
    for step, validation_loss in enumerate((None, 2.75, None, None), 3):
        terminal.picture.show(line(step, validation_loss=validation_loss, **loads(6)), six)
    assert "validation loss 2.750" in terminal.drawn()[1]


def test_a_line_that_names_no_rank_leaves_the_rows_as_they_were(six: Roster) -> None:
    terminal = Terminal(80, 24)
    terminal.picture.show(line(3, **loads(6)), six)
    before = terminal.drawn()
    terminal.picture.show(line(4, left_out=6), six)
    assert terminal.drawn()[2:] == before[2:]
    assert "4/40" in terminal.drawn()[0]


def test_it_is_drawn_at_most_twice_a_second_and_the_last_picture_has_no_rows(six: Roster) -> None:
    terminal = Terminal(80, 24)
    written = terminal.console.file
    assert isinstance(written, io.StringIO)
    for step in range(1, 101):
        terminal.now_s = step * REFRESH_S / 50
        terminal.picture.show(line(step, steps=100, **loads(6)), six)
    assert written.getvalue().count("dp/pp/tp") == 2
    at = len(written.getvalue())
    terminal.picture.stop()
    end = written.getvalue()[at:]
    assert "dp/pp/tp" not in end
    assert "100/100" in end
    assert "busiest rank 3 91 %" in end


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, six: Roster) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO()
    with ProgressView(Console(file=stream, width=100, force_terminal=True)) as view:
        view.show(line(1, **loads(6)), six)
    assert stream.getvalue().startswith("candidate step 1/40 (measure)")
    assert "\x1b" not in stream.getvalue()


@given(rows=st.integers(0, 60), needs=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 40)))
def test_rows_are_shared_fairly(rows: int, needs: dict[str, int]) -> None:
    shares = share_rows(rows, needs)
    assert sum(shares.values()) <= rows
    assert all(0 <= shares[name] <= need for name, need in needs.items())
    if any(shares[name] < need for name, need in needs.items()):
        assert sum(shares.values()) == rows
        least = min(shares[name] for name, need in needs.items() if shares[name] < need)
        assert all(share <= least + 1 for share in shares.values())
