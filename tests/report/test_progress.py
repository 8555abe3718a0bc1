"""Progress lines: written, read back while they are being written, and shown to a terminal, a pipe or nobody."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from hybrid_runtime.report.progress import ProgressLine, ProgressTail
from hybrid_runtime.report.progress_view import ProgressFollower, ProgressView


def line(step: int, **changes: object) -> ProgressLine:
    values = {"step": step, "steps": 40, "phase": "measure", "loss": 2.5126, "tokens_per_s": 5342.7,
              "step_time_s": 0.3834, "busiest": (3, 91.2), "idlest": (0, 72.1)}  # fmt: skip
    return ProgressLine.model_validate(values | changes)


WORDS = "(measure)  loss 2.513  5 343 tokens/s  383 ms/step  busiest rank 3 91 %  idlest rank 0 72 %"


def shown(lines: list[tuple[float, ProgressLine]], *, quiet: bool = False) -> list[str]:
    stream, now_s = io.StringIO(), [0.0]
    with ProgressView(Console(file=stream, width=40), quiet, clock=lambda: now_s[0]) as view:
        for now_s[0], one in lines:
            view.show(one)
    return stream.getvalue().splitlines()


def test_plain_lines_come_first_then_every_two_seconds_then_last_and_are_not_wrapped() -> None:
    lines = [(step * 0.5, line(step)) for step in range(1, 41)]
    assert shown(lines) == [f"candidate step {step}/40 {WORDS}" for step in (1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 40)]


def test_a_run_that_ends_early_still_shows_its_last_step_once() -> None:
    assert shown([(0.0, line(1)), (0.1, line(2)), (0.2, line(3))])[-1].startswith("candidate step 3/40")
    assert len(shown([(0.0, line(1))])) == 1


def test_each_side_has_its_own_lines() -> None:
    lines = [(0.0, line(1)), (0.1, line(1, side="baseline", loss=None, busiest=None, idlest=None))]
    assert shown(lines)[1] == "baseline step 1/40 (measure)  5 343 tokens/s  383 ms/step"


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


def test_a_tail_takes_complete_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    tail = ProgressTail(path)
    assert tail.read_new() == []
    first, second = line(1).to_line(), line(2, loss=None).to_line()
    path.write_text(first + second[:20])
    assert tail.read_new() == [line(1)]
    assert tail.read_new() == []
    path.write_text(first + second + "not a record\n")
    assert tail.read_new() == [line(2, loss=None)]
    assert tail.read_new() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_loss_survives_the_file(tmp_path: Path, value: float) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text(line(1, loss=value).to_line())
    assert [str(one.loss) for one in ProgressTail(path).read_new()] == [str(value)]


def test_a_follower_shows_what_each_side_has_written_and_misses_no_last_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    paths = [tmp_path / "candidate.jsonl", tmp_path / "baseline.jsonl"]
    with ProgressFollower(paths, Console(file=stream, width=100)) as follower:
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
