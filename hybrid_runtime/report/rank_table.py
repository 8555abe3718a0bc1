"""The live table's rows: as many columns and ranks as fit, the idlest and the busiest first where not all do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from hybrid_runtime.report.cells import UNKNOWN, bytes_text, printable, rate_text
from hybrid_runtime.report.progress import EXTREMES, RankLoad
from hybrid_runtime.report.roster import Member

_GAP = " "
_NOW_CELLS = 11  # room for what a rank is doing: "REDUCE_GRAD"
_DEVICE_CELLS = 14  # longer ids are cut in the middle on a narrow terminal: hosts differ at the start, cores at the end
_OTHER_CELLS = 66  # what the columns beside the device take
_BAR_CELLS = 10


class _Row(NamedTuple):
    load: RankLoad
    member: Member | None
    device: str
    now: str


class _Column(NamedTuple):
    """One column. Priority 0 is never left out; of the others the highest goes first when the terminal is narrow.

    Attributes:
        cells: room that is kept even for shorter figures, so that the columns do not jump.
    """

    heading: str
    priority: int
    text: Callable[[_Row], str]
    cells: int = 0
    right: bool = False


_COLUMNS = (
    _Column("rank", 0, lambda row: str(row.load.rank)),
    _Column("dp/pp/tp", 3, lambda row: "-" if row.member is None else "/".join(map(str, row.member[:3]))),
    _Column("stage", 4, lambda row: "-" if row.member is None else row.member.stages),
    _Column("device", 6, lambda row: row.device),
    _Column("busy %", 0, lambda row: _percent(row.load.busy_percent), right=True),
    _Column("", 7, lambda row: _bar(row.load.busy_percent)),
    _Column("wait %", 0, lambda row: _percent(row.load.wait_percent), right=True),
    _Column("memory", 1, lambda row: _bytes(row.load.memory_bytes), cells=10, right=True),
    _Column("tokens/s", 5, lambda row: rate_text(row.load.tokens_per_s), right=True),
    _Column("now", 2, lambda row: set_cell_size(row.now, _NOW_CELLS), cells=_NOW_CELLS),
)


def rank_table(
    loads: Sequence[RankLoad],
    left_out: int,
    member: Callable[[int], Member | None],
    doing: Callable[[int], str],
    *,
    width: int,
    room: int,
) -> list[Text]:
    """Headings and at most `room` rows, each one line of at most `width` cells.

    Args:
        loads: the ranks that are known of, by rank.
        left_out: how many more there are.
        member, doing: who a rank is, and what it is doing; asked for the rows that are shown only.
    """
    top, bottom = chosen(loads, left_out, room)
    rows = [_row(load, member(load.rank), doing(load.rank), width) for load in (*top, *bottom)]
    lines = _lines(rows, width)
    hidden = len(loads) + left_out - len(rows)
    if hidden:
        words = f"... {hidden} more rank{'s' if hidden != 1 else ''}{_between(top, bottom)}"
        lines.insert(1 + len(top), Text(_cut(words, width), style="dim", no_wrap=True))
    return lines[: 1 + room]


def chosen(loads: Sequence[RankLoad], left_out: int, room: int) -> tuple[list[RankLoad], list[RankLoad]]:
    """All ranks in order and nothing, or the idlest and the busiest with one row between them for what is left out."""
    if not left_out and len(loads) <= room:
        return list(loads), []
    order = sorted(loads, key=lambda load: (load.busy_percent or 0.0, load.rank))
    shown = min(room - 1, len(order), 2 * EXTREMES if left_out else len(order))
    busiest = max(0, shown // 2)
    return order[: max(0, shown - busiest)], order[len(order) - busiest :]


def _row(load: RankLoad, member: Member | None, doing: str, width: int) -> _Row:
    device = "-" if member is None else _shortened(member.device, max(_DEVICE_CELLS, width - _OTHER_CELLS))
    return _Row(load, member, device, doing)


def _lines(rows: Sequence[_Row], width: int) -> list[Text]:
    columns = list(_COLUMNS)
    while True:
        table = [[printable(column.text(row)) for row in rows] for column in columns]
        widths = [
            max(column.cells, *map(cell_len, (column.heading, *cells)))
            for column, cells in zip(columns, table, strict=True)
        ]
        last = max(columns, key=lambda column: column.priority)
        if sum(widths) + len(_GAP) * (len(widths) - 1) <= width or last.priority == 0:
            break
        columns.remove(last)
    heading = _line([column.heading for column in columns], columns, widths, width)
    heading.stylize("underline dim")
    return [heading, *(_line(cells, columns, widths, width) for cells in zip(*table, strict=True))]


def _line(cells: Sequence[str], columns: Sequence[_Column], widths: Sequence[int], width: int) -> Text:
    texts = [
        " " * (room - cell_len(cell)) + cell if column.right else set_cell_size(cell, room)
        for cell, column, room in zip(cells, columns, widths, strict=True)
    ]
    return Text(_cut(_GAP.join(texts).rstrip(), width), no_wrap=True)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width)


def _between(top: Sequence[RankLoad], bottom: Sequence[RankLoad]) -> str:
    """What the figures of the ranks left out lie between; "" where that is not known."""
    if not top or not bottom or top[-1].busy_percent is None or bottom[0].busy_percent is None:
        return ""
    return f", busy between {top[-1].busy_percent:.1f} and {bottom[0].busy_percent:.1f} %"


def _percent(percent: float | None) -> str:
    return UNKNOWN if percent is None else f"{percent:.1f}"


def _bytes(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else bytes_text(size_bytes)


def _bar(percent: float | None) -> str:
    filled = round(min(max(percent or 0.0, 0.0), 100.0) / 100 * _BAR_CELLS)
    return "#" * filled + "." * (_BAR_CELLS - filled)


def _shortened(device: str, most: int) -> str:
    if cell_len(device) <= most:
        return device
    half = (most - 2) // 2
    return f"{device[:half]}..{device[-half:]}"
