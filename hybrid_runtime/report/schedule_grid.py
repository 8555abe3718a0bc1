"""A replayed step as a grid, for a terminal and as SVG or HTML: one row per pipeline rank, time from left to right.

    rank 0 F0F1....B0--..B1--      the letter of the kind and the microbatch, "-" up to the action's end, dots for idle;
    rank 1 ..F0B0--F1B1--....      small letters are of a rank's second or later stage

A grid wider than the terminal is folded into bands, one below the other, as long as every action then shows its
microbatch; a longer one is scaled: every column shows what runs in the middle of its time.
"""

from __future__ import annotations

import math
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

WORDS = {
    Kind.F: "forward", Kind.B: "backward", Kind.I: "input gradient", Kind.W: "weight gradient",
    Kind.EF: "lookup", Kind.EB: "row gradients",
}  # fmt: skip
# Of a rank's first stage, under white letters, and of its later ones, under black letters: contrast of 4.5 and more.
COLOURS = {
    Kind.F: "#35618f", Kind.B: "#b3400c", Kind.I: "#9c5c00", Kind.W: "#2f7a33", Kind.EF: "#5b4b9a", Kind.EB: "#8a3470",
}  # fmt: skip
PALE = {
    Kind.F: "#a9c6e4", Kind.B: "#f5b795", Kind.I: "#f2d08c", Kind.W: "#add8a8", Kind.EF: "#c9bfee", Kind.EB: "#eab8d8",
}  # fmt: skip
IDLE = "."
MOST_COLUMNS_PER_TICK = 4
MOST_BANDS = 8
_ROW_PX, _LEFT_PX, _TOP_PX, _WIDTH_PX = 22, 64, 44, 1100
_MOST_MARKS = 12  # of the time axis

# One drawing for light and dark pages; images in Markdown follow the reader's preference too.
_STYLE = (
    ".paper{fill:#fff}.ink{fill:#1c1f23}.idle{fill:#ebebeb}.mark{stroke:#9aa0a6}"
    ".first{fill:#fff}.later{fill:#111}"
    + "".join(f".{kind.value}0{{fill:{COLOURS[kind]}}}.{kind.value}1{{fill:{PALE[kind]}}}" for kind in WORDS)
    + "@media(prefers-color-scheme:dark){.paper{fill:#16191d}.ink{fill:#e4e6e9}.idle{fill:#2a2f36}}"
)


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
    room = max(1, width - label)
    num_columns = _columns(step, room)
    rows = [_row_text(row, Fraction(step.makespan), num_columns) for row in step.ranks]
    grid = Text(no_wrap=True)
    for start in range(0, num_columns, room):
        for name, row in zip(names, rows):
            grid.append(name.ljust(label)).append_text(row[start : start + room]).append("\n")
        grid.append("\n")
    grid.rstrip()
    return grid


def _row_text(row: Sequence[Timed], end: Fraction, num_columns: int) -> Text:
    text = Text()
    first = min((timed.action.stage for timed in row), default=0)
    for timed, count in _runs(row, end, num_columns):
        if timed is None:
            text.append(IDLE * count, style="dim")
        else:
            text.append(_cell(timed.action, count, first), style=_style(timed.action, first))
    return text


def _style(action: Action, first_stage: int) -> str:
    if action.stage == first_stage:
        return f"white on {COLOURS[action.kind]}"
    return f"black on {PALE[action.kind]}"


def legend(step: Replay) -> Text:
    """What the letters mean, of the kinds that occur."""
    text = Text()
    for kind in _kinds(step):
        text.append(f" {kind.value} ", style=f"white on {COLOURS[kind]}").append(f" {WORDS[kind]}  ")
    text.append(f"{IDLE} idle", style="dim")
    if len(step.rows.stage_to_rank) > step.rows.num_ranks:
        text.append("  small: later stage")
    return text


def grid_svg(step: Replay, title: str, lines: Sequence[str] = ()) -> str:
    """The grid as one self-contained SVG image; every action says its name and times when pointed at."""
    bottom = _TOP_PX + _ROW_PX * step.rows.num_ranks
    below = bottom + 76
    height = below + _ROW_PX * len(lines)
    scale = Fraction(_WIDTH_PX) / step.makespan if step.makespan else Fraction(0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT_PX + _WIDTH_PX + 16} {height}" '
        'font-family="sans-serif" font-size="12">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="100%" height="100%"/><text class="ink" x="8" y="24" font-size="16">'
        f"{_safe(title)}</text>",
    ]
    for rank, row in enumerate(step.ranks):
        top = _TOP_PX + rank * _ROW_PX
        parts.append(f'<text class="ink" x="8" y="{top + 15}">rank {rank}</text>')
        parts.append(f'<rect class="idle" x="{_LEFT_PX}" y="{top}" width="{_WIDTH_PX}" height="{_ROW_PX - 2}"/>')
        first = min((timed.action.stage for timed in row), default=0)
        parts += (_svg_action(timed, scale, top, first) for timed in row if timed.end > timed.start)
    parts += _svg_axis(step, scale, bottom)
    parts += _svg_legend(step, bottom + 46)
    parts += (
        f'<text class="ink" x="8" y="{below + number * _ROW_PX}">{_safe(line)}</text>'
        for number, line in enumerate(lines)
    )
    return "\n".join((*parts, "</svg>\n"))


def grid_html(step: Replay, title: str, lines: Sequence[str] = ()) -> str:
    """The grid as one self-contained page."""
    style = (
        ":root{color-scheme:light dark}body{margin:0;background:#fff}svg{display:block;max-width:1400px;margin:auto}"
        "@media(prefers-color-scheme:dark){body{background:#16191d}}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_safe(title)}</title>'
        f"<style>{style}</style></head>\n<body>\n{grid_svg(step, title, lines)}</body></html>\n"
    )


def _kinds(step: Replay) -> list[Kind]:
    found = {timed.action.kind for row in step.ranks for timed in row}
    return [kind for kind in WORDS if kind in found]


def _columns(step: Replay, room: int) -> int:
    """How many columns the whole step gets.

    As many per tick as there is room for, up to four, if every action then shows its microbatch. Else as many as that
    takes, in bands of the room; or all the room, once, where that makes too many bands.
    """
    ticks = int(step.makespan / step.tick)
    work = [timed for row in step.ranks for timed in row if timed.end > timed.start]
    if not work:
        return room
    longest_text = max(len(f"{timed.action.kind.value}{timed.action.microbatch}") for timed in work)
    shortest = min(timed.end - timed.start for timed in work)
    needed = math.ceil(Fraction(longest_text * step.makespan) / shortest)
    per_tick = min(room // ticks, MOST_COLUMNS_PER_TICK)
    if needed <= per_tick * ticks:
        return per_tick * ticks
    for num_columns in (-(-needed // ticks) * ticks, needed):
        if num_columns <= MOST_BANDS * room:
            return num_columns
    return per_tick * ticks or room


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
    later = timed.action.stage != first_stage
    number = str(timed.action.microbatch)
    inside = (
        f'<text class="{"later" if later else "first"}" x="{left + width / 2:.2f}" y="{top + 14}" '
        f'text-anchor="middle" font-size="10">{number}</text>'
        if width >= 7 * len(number)
        else ""
    )
    return (
        f'<g><title>{timed.action}: {times}</title><rect class="{timed.action.kind.value}{int(later)}" x="{left:.2f}" '
        f'y="{top}" width="{max(width - 0.5, 0.1):.2f}" height="{_ROW_PX - 2}"/>{inside}</g>'
    )


def _svg_axis(step: Replay, scale: Fraction, top: int) -> Iterable[str]:
    """Marks at round times: 1, 2 or 5 times a power of ten apart."""
    apart = _round_up(Fraction(step.makespan) / _MOST_MARKS)
    times = [apart * number for number in range(int(step.makespan / apart) + 1)] if apart else []
    for time in times:
        x = float(_LEFT_PX + time * scale)
        yield f'<line class="mark" x1="{x:.2f}" y1="{top}" x2="{x:.2f}" y2="{top + 4}"/>'
        place = f'x="{x:.2f}" y="{top + 16}" text-anchor="middle" font-size="10"'
        yield f'<text class="ink" {place}>{decimal_text(time)}</text>'


def _round_up(time: Fraction) -> Fraction:
    if time <= 0:
        return Fraction(0)
    power = Fraction(10) ** (math.floor(math.log10(time)))
    return next(step for step in (power, 2 * power, 5 * power, 10 * power, 20 * power) if step >= time)


def _svg_legend(step: Replay, top: int) -> Iterable[str]:
    left = _LEFT_PX
    shown = [(f"{kind.value}0", f"{kind.value} {WORDS[kind]}") for kind in _kinds(step)] + [("idle", "idle")]
    for name, words in shown:
        yield f'<rect class="{name}" x="{left}" y="{top - 10}" width="12" height="12"/>'
        yield f'<text class="ink" x="{left + 18}" y="{top}">{words}</text>'
        left += 150
    if len(step.rows.stage_to_rank) > step.rows.num_ranks:
        yield f'<text class="ink" x="{left}" y="{top}">pale: a rank\'s later stages</text>'


def _safe(text: str) -> str:
    return escape(printable(text))
