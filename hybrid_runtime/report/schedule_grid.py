"""A replayed step as a grid, for a terminal and as SVG or HTML: one row per pipeline rank, time from left to right.

    rank 0 F0F1....B0--..B1--      the letter of the kind and the microbatch, "-" up to the action's end, dots for idle;
    rank 1 ..F0B0--F1B1--....      small letters are of a rank's second or later stage

A grid wider than the terminal is scaled: every column shows what runs in the middle of its time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from fractions import Fraction
from html import escape
from itertools import groupby
from typing import NamedTuple

from rich.text import Text

from hybrid_runtime.exact import decimal_text
from hybrid_runtime.report.cells import printable
from hybrid_runtime.schedule.actions import Action, Kind
from hybrid_runtime.schedule.replayed import Replay, Timed

WORDS = {Kind.F: "forward", Kind.B: "backward", Kind.I: "input gradient", Kind.W: "weight gradient"}
COLOURS = {Kind.F: "#4c78a8", Kind.B: "#f58518", Kind.I: "#e4a72c", Kind.W: "#54a24b"}
IDLE = "."
MOST_COLUMNS_PER_TICK = 4
_ROW_PX, _LEFT_PX, _TOP_PX, _WIDTH_PX = 22, 64, 44, 1100


class Figures(NamedTuple):
    """What stands below a grid.

    Attributes:
        peaks: per pipeline rank, most microbatches of its whole share held at once.
    """

    makespan: Fraction
    bubble: Fraction
    peaks: tuple[Fraction, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The figures in words."""
        peaks = " ".join(decimal_text(peak, 2) for peak in self.peaks)
        return (
            f"makespan {decimal_text(self.makespan)}, bubble {decimal_text(100 * self.bubble, 2)} %",
            f"microbatches held at once, per rank: {peaks}",
        )


def grid_text(step: Replay, width: int) -> Text:
    """The grid for a terminal of so many columns; colours are dropped by a console that has none."""
    names = [f"rank {rank} " for rank in range(step.rows.num_ranks)]
    label = max(map(len, names))
    end = max((timed.end for row in step.ranks for timed in row), default=0)
    num_columns = _columns(int(end / step.tick), max(1, width - label))
    grid = Text(no_wrap=True)
    for name, row in zip(names, step.ranks):
        grid.append(name.ljust(label))
        first = min((timed.action.stage for timed in row), default=0)
        for timed, count in _runs(row, Fraction(end), num_columns):
            if timed is None:
                grid.append(IDLE * count, style="dim")
            else:
                grid.append(_cell(timed.action, count, first), style=f"white on {COLOURS[timed.action.kind]}")
        grid.append("\n")
    grid.rstrip()
    return grid


def legend(step: Replay) -> Text:
    """What the letters mean, of the kinds that occur."""
    text = Text()
    for kind in _kinds(step):
        text.append(f" {kind.value} ", style=f"white on {COLOURS[kind]}").append(f" {WORDS[kind]}   ")
    text.append(f"{IDLE} idle", style="dim")
    if len(step.rows.stage_to_rank) > step.rows.num_ranks:
        text.append("   small letters: a rank's later stages")
    return text


def grid_svg(step: Replay, title: str, lines: Sequence[str] = ()) -> str:
    """The grid as one self-contained SVG image; every action says its name and times when pointed at."""
    height = _TOP_PX + _ROW_PX * (step.rows.num_ranks + len(lines)) + 44
    scale = Fraction(_WIDTH_PX) / step.makespan if step.makespan else Fraction(0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT_PX + _WIDTH_PX + 16} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="8" y="24" font-size="16">{_safe(title)}</text>',
    ]
    for rank, row in enumerate(step.ranks):
        top = _TOP_PX + rank * _ROW_PX
        parts.append(f'<text x="8" y="{top + 15}">rank {rank}</text>')
        parts.append(f'<rect x="{_LEFT_PX}" y="{top}" width="{_WIDTH_PX}" height="{_ROW_PX - 2}" fill="#eee"/>')
        first = min((timed.action.stage for timed in row), default=0)
        parts += (_svg_action(timed, scale, top, first) for timed in row if timed.end > timed.start)
    parts += _svg_legend(step, _TOP_PX + _ROW_PX * step.rows.num_ranks + 18)
    below = _TOP_PX + _ROW_PX * step.rows.num_ranks + 42
    parts += (f'<text x="8" y="{below + number * _ROW_PX}">{_safe(line)}</text>' for number, line in enumerate(lines))
    return "\n".join((*parts, "</svg>\n"))


def grid_html(step: Replay, title: str, lines: Sequence[str] = ()) -> str:
    """The grid as one self-contained page."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_safe(title)}</title></head>\n'
        f"<body>\n{grid_svg(step, title, lines)}</body></html>\n"
    )


def _kinds(step: Replay) -> list[Kind]:
    found = {timed.action.kind for row in step.ranks for timed in row}
    return [kind for kind in WORDS if kind in found]


def _columns(ticks: int, room: int) -> int:
    """As many columns per tick as there is room for, up to four; all the room where a tick has no column."""
    return min(room // ticks, MOST_COLUMNS_PER_TICK) * ticks if 0 < ticks <= room else room


def _runs(row: Sequence[Timed], end: Fraction, num_columns: int) -> Iterable[tuple[Timed | None, int]]:
    """What every column shows, equal neighbours together."""
    work = [timed for timed in row if timed.end > timed.start]
    starts = [timed.start for timed in work]
    shown: list[Timed | None] = []
    for column in range(num_columns):
        middle = (2 * column + 1) * end / (2 * num_columns)
        found = work[bisect_right(starts, middle) - 1] if work and starts[0] <= middle else None
        shown.append(found if found is not None and middle < found.end else None)
    return ((timed, len(list(run))) for timed, run in groupby(shown))


def _cell(action: Action, count: int, first_stage: int) -> str:
    letter = action.kind.value if action.stage == first_stage else action.kind.value.lower()
    text = f"{letter}{action.microbatch}"
    return text.ljust(count, "-") if len(text) <= count else letter * count


def _svg_action(timed: Timed, scale: Fraction, top: int, first_stage: int) -> str:
    left, width = float(_LEFT_PX + timed.start * scale), float((timed.end - timed.start) * scale)
    times = f"{decimal_text(Fraction(timed.start))} to {decimal_text(Fraction(timed.end))}"
    opacity = 1 if timed.action.stage == first_stage else 0.7
    number = str(timed.action.microbatch)
    inside = (
        f'<text x="{left + width / 2:.2f}" y="{top + 14}" fill="white" text-anchor="middle" font-size="10">'
        f"{number}</text>"
        if width >= 7 * len(number)
        else ""
    )
    return (
        f'<g><title>{timed.action}: {times}</title><rect x="{left:.2f}" y="{top}" width="{width:.2f}" '
        f'height="{_ROW_PX - 2}" fill="{COLOURS[timed.action.kind]}" fill-opacity="{opacity}" stroke="white" '
        f'stroke-width="0.5"/>{inside}</g>'
    )


def _svg_legend(step: Replay, top: int) -> Iterable[str]:
    for number, kind in enumerate(_kinds(step)):
        left = _LEFT_PX + 150 * number
        yield f'<rect x="{left}" y="{top - 10}" width="12" height="12" fill="{COLOURS[kind]}"/>'
        yield f'<text x="{left + 18}" y="{top}">{kind.value} {WORDS[kind]}</text>'


def _safe(text: str) -> str:
    return escape(printable(text))
