"""Progress lines shown to a terminal, a pipe or nobody, and followed while they are being written."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from hybrid_runtime.report.exports import Exports
from hybrid_runtime.report.progress import ProgressLine
from hybrid_runtime.report.progress_view import ProgressFollower, ProgressView
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.run_folder import RunFolder
from tests.report.running import line

WORDS = "(measure)  loss 2.513  5 343 tokens/s  383 ms/step  MFU n/a  busiest rank 3 91 %  idlest rank 0 72 %"


def shown(lines: list[tuple[float, ProgressLine]], *, quiet: bool = False) -> list[str]:
    stream, now_s = io.StringIO(), [0.0]
    with ProgressView(Console(file=stream, width=40), quiet, clock=lambda: now_s[0]) as view:
        for now_s[0], one in lines:
            view.show(one)
    return stream.getvalue().splitlines()


def test_plain_lines_come_first_then_every_two_seconds_then_last_and_are_not_wrapped() -> None:
    lines = [(step * 0.5, line(step)) for step in range(1, 41)]
    assert shown(lines) == [f"candidate step {step}/40 {WORDS}" for step in (1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 40)]


def test_a_validation_is_always_told() -> None:
    lines = [(step * 0.1, line(step, validation_loss=2.75 if step == 7 else None)) for step in range(1, 11)]
    told = shown(lines)
    assert [text.split()[2] for text in told] == ["1/40", "7/40", "10/40"]
    assert "loss 2.513  validation loss 2.750  5 343 tokens/s" in told[1]


def test_a_run_that_ends_early_still_shows_its_last_step_once() -> None:
    assert shown([(0.0, line(1)), (0.1, line(2)), (0.2, line(3))])[-1].startswith("candidate step 3/40")
    assert len(shown([(0.0, line(1))])) == 1


def test_each_side_has_its_own_lines() -> None:
    lines = [(0.0, line(1)), (0.1, line(1, side="baseline", loss=None, busiest=None, idlest=None))]
    assert shown(lines)[1] == "baseline step 1/40 (measure)  5 343 tokens/s  383 ms/step  MFU n/a"


def test_quiet_says_only_how_it_ended() -> None:
    assert shown([(float(step), line(step)) for step in range(1, 41)], quiet=True) == [f"candidate step 40/40 {WORDS}"]
    assert shown([], quiet=True) == []


def test_a_terminal_gets_a_bar_per_side_with_figures_and_names_cannot_break_out() -> None:
    stream = io.StringIO()
    with ProgressView(Console(file=stream, width=100, force_terminal=True, color_system=None)) as view:
        for step in range(1, 41):
            view.show(line(step, phase="[red]x"))
        view.show(line(7, side="baseline"))
    text = stream.getvalue()
    last = text[text.rindex("candidate") :]
    assert "40/40" in last
    assert "(red]x" in last
    assert "busiest rank 3 91 %" in last
    assert "7/40" in last[last.index("baseline") :]
    assert "left" in last


def test_a_follower_shows_what_each_side_has_written_and_misses_no_last_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    sides = [RunFolder(tmp_path).create(), RunFolder(tmp_path).baseline.create()]
    paths = [side.progress for side in sides]
    with ProgressFollower(sides, Console(file=stream, width=100)) as follower:
        follower.update()
        paths[0].write_text(line(1).to_line())
        follower.update()
        paths[0].write_text(line(1).to_line() + line(40).to_line())
        paths[1].write_text(line(40, side="baseline").to_line())
    assert [one.split(" (")[0] for one in stream.getvalue().splitlines()] == [
        "candidate step 1/40",
        "candidate step 40/40",
        "baseline step 40/40",
    ]


def test_exports_hear_every_line_even_where_nothing_is_shown(tmp_path: Path) -> None:
    class Heard:
        name = "heard"

        def __init__(self) -> None:
            self.steps: list[tuple[str, int]] = []
            self.flushes = 0

        def show(self, line: ProgressLine, roster: Roster) -> None:
            self.steps.append((line.side, line.step))
            assert roster.folder in sides

        def flush(self) -> None:
            self.flushes += 1

        def judged(self, verdict: object) -> None:
            raise AssertionError("nobody judged")

        def close(self, end: str) -> None:
            raise AssertionError("whoever opened exports closes them")

    sides, heard = [RunFolder(tmp_path).create(), RunFolder(tmp_path).baseline.create()], Heard()
    with ProgressFollower(sides, None, exports=Exports([heard])) as follower:
        sides[0].progress.write_text(line(1).to_line() + line(2).to_line())
        follower.update()
        sides[1].progress.write_text(line(1, side="baseline").to_line())
    assert heard.steps == [("candidate", 1), ("candidate", 2), ("baseline", 1)]
    assert heard.flushes == 2
