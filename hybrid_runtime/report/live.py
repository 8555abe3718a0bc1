"""The moving picture of a run in a terminal: per side a bar, the newest figures, and a row per rank.

    candidate ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╸━━━━━━━ 96/152 measure 0:00:13 left
    loss 2.513  3 693 tokens/s  306 ms/step
    rank dp/pp/tp stage device   busy % wait %     memory tokens/s now
    0    0/0/0    0     vm:rank0   25.3   52.4    3.4 MiB    3 701 0F12
    ... 4 more ranks, busy between 25.3 and 28.1 %
    5    0/2/1    2     vm:rank5   28.1   50.3    2.5 MiB    3 698 2B11

Drawn by whoever calls `refresh`, at most twice a second and without a thread of its own: on a CPU run its ranks need
the cores. The side that finished a step last is the one at work; the other's rows rest until its turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from hybrid_runtime.report.cells import printable
from hybrid_runtime.report.progress import ProgressLine, RankLoad
from hybrid_runtime.report.rank_table import rank_table
from hybrid_runtime.report.roster import Roster

REFRESH_S = 0.5
_LINES_PER_SIDE = 3  # bar, figures, headings
_FEWEST_ROWS = 1


@dataclass
class _Side:
    line: ProgressLine
    told: ProgressLine  # the newest line that names ranks; not every line does
    roster: Roster | None
    task: TaskID
    known: dict[int, RankLoad] = field(default_factory=dict)
    doing: dict[int, str] = field(default_factory=dict)  # as it was last drawn while at work

    def loads(self) -> list[RankLoad]:
        """The ranks that were named last, with what was measured of them last."""
        return [self.known[load.rank] for load in self.told.ranks]


class LivePicture:
    """`start`, then `show` every line and `refresh` often, then `stop`, which leaves bars and figures standing.

    Args:
        console: a terminal; its size is read at every drawing.
        clock: seconds; exchanged by tests.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sides: dict[str, _Side] = {}
        self._active = ""
        self._is_running = False
        self._drawn_s = float("-inf")
        self._bars = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[phase]:<7}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            expand=True,
            auto_refresh=False,
        )
        self._live = Live(self, console=console, auto_refresh=False, vertical_overflow="crop")

    def start(self) -> None:
        """Takes the lower lines of the terminal; what the console prints meanwhile appears above."""
        self._is_running = True
        self._live.start()

    def stop(self) -> None:
        """Draws a last time, without the rows: the verdict has them."""
        self._is_running = False
        self._live.refresh()
        self._live.stop()

    def show(self, line: ProgressLine, roster: Roster | None) -> None:
        """Takes in one step and draws if that is due."""
        phase = printable(line.phase).replace("[", "(")  # this column reads markup
        side = self._sides.get(line.side)
        if side is None:
            task = self._bars.add_task(line.side, total=line.steps, phase=phase)
            side = self._sides[line.side] = _Side(line, line, roster, task)
        side.line, side.roster, self._active = line.known_since(side.line), roster, line.side
        side.told = line if line.ranks else side.told
        for load in line.ranks:
            side.known[load.rank] = load.known_since(side.known.get(load.rank))
        self._bars.update(side.task, completed=line.step, total=line.steps, phase=phase)
        self.refresh()

    def refresh(self) -> None:
        """Draws, unless it was drawn a moment ago."""
        now_s = self._clock()
        if self._is_running and now_s - self._drawn_s >= REFRESH_S:
            self._drawn_s = now_s
            self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._sides and self._is_running:
            yield Text("the ranks are starting; their first step will show here")
        rooms = self._rooms(console.size.height)
        for name, side in self._sides.items():
            yield self._bar(side)
            if name not in rooms:
                yield Text(side.line.figures())
                continue
            yield Text(side.line.overall(), no_wrap=True, overflow="ellipsis")
            rows = self._rows(name, side, options.max_width, rooms[name])
            yield from rows if name == self._active else _resting(rows)

    def _bar(self, side: _Side) -> RenderableType:
        return self._bars.make_tasks_table([task for task in self._bars.tasks if task.id == side.task])

    def _rows(self, name: str, side: _Side, width: int, room: int) -> list[Text]:
        roster = side.roster
        assert roster is not None

        def doing(rank: int) -> str:
            if name == self._active or rank not in side.doing:
                side.doing[rank] = roster.doing(rank)
            return side.doing[rank]

        return rank_table(side.loads(), side.told.left_out, roster.member, doing, width=width, room=room)

    def _rooms(self, height: int) -> dict[str, int]:
        """Rows for each side's ranks; a side is missing where it has no ranks to show, or too little room is left."""
        if not self._is_running:
            return {}
        needs = {
            name: len(side.told.ranks) + side.told.left_out
            for name, side in self._sides.items()
            if side.roster is not None and side.told.ranks
        }
        lines_left = height - 1 - _LINES_PER_SIDE * len(self._sides)
        rooms = share_rows(lines_left, needs)
        return {name: room for name, room in rooms.items() if room >= _FEWEST_ROWS}


def share_rows(rows: int, needs: dict[str, int]) -> dict[str, int]:
    """Divides rows fairly: nobody gets more than it needs, and what one leaves the others share."""
    shares: dict[str, int] = {}
    for number, name in enumerate(sorted(needs, key=needs.__getitem__)):
        shares[name] = max(0, min(needs[name], rows // (len(needs) - number)))
        rows -= shares[name]
    return shares


def _resting(rows: list[Text]) -> Iterator[Text]:
    for row in rows:
        dimmed = row.copy()
        dimmed.stylize("dim")
        yield dimmed
