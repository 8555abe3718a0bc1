"""Shows progress lines: a live picture in a terminal; elsewhere plain lines, one every two seconds at most.

progress.jsonl --ProgressFollower--> ProgressView --> LivePicture or plain lines
                                \\--> Exports  --> TensorBoard, Prometheus
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.text import Text

from hybrid_runtime.report.exports import Exports
from hybrid_runtime.report.live import LivePicture
from hybrid_runtime.report.progress import ProgressLine, ProgressTail
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.run_folder import RunFolder

PLAIN_INTERVAL_S = 2.0


class ProgressView:
    """Shows lines as they come: `with ProgressView(console) as view: view.show(line)`.

    Args:
        quiet: nothing but each side's last line, when the view closes.
        clock: seconds; exchanged by tests.
    """

    def __init__(self, console: Console, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._quiet = quiet
        self._clock = clock
        self._last: dict[str, ProgressLine] = {}
        self._printed: dict[str, tuple[int, float]] = {}  # side -> (step, when)
        moves = console.is_terminal and not console.is_dumb_terminal
        self._picture = LivePicture(console, clock) if moves and not quiet else None

    def __enter__(self) -> ProgressView:
        if self._picture is not None:
            self._picture.start()
        return self

    def show(self, line: ProgressLine, roster: Roster | None = None) -> None:
        """Shows one step, or keeps it back if another was shown a moment ago; with a roster, also a table of ranks."""
        self._last[line.side] = line
        if self._picture is not None:
            self._picture.show(line, roster)
        elif not self._quiet and self._is_due(line):
            self._print(line)

    def refresh(self) -> None:
        """Draws the picture again if that is due: what ranks are doing changes between steps too."""
        if self._picture is not None:
            self._picture.refresh()

    def _is_due(self, line: ProgressLine) -> bool:
        if line.side not in self._printed or line.step >= line.steps or line.validation_loss is not None:
            return True
        return self._clock() - self._printed[line.side][1] >= PLAIN_INTERVAL_S

    def _print(self, line: ProgressLine) -> None:
        self._printed[line.side] = (line.step, self._clock())
        self._console.print(Text(str(line)), soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._picture is not None:
            self._picture.stop()
            return
        for side, line in self._last.items():
            if side not in self._printed or self._printed[side][0] != line.step:
                self._print(line)


class ProgressFollower:
    """A view and exports fed from the files of running sides: `update()` again and again, and once more at the end.

    Args:
        sides: the sides' run folders; they may hold no progress yet.
        console: None shows nothing: another machine does.
    """

    def __init__(
        self,
        sides: Sequence[RunFolder],
        console: Console | None,
        *,
        quiet: bool = False,
        exports: Exports | None = None,
    ) -> None:
        self._sides = [(ProgressTail(folder.progress), Roster(folder)) for folder in sides]
        self._view = None if console is None else ProgressView(console, quiet)
        self._exports = exports or Exports()

    def __enter__(self) -> ProgressFollower:
        if self._view is not None:
            self._view.__enter__()
        return self

    def update(self) -> None:
        """Passes on what the ranks have written since the last call."""
        for tail, roster in self._sides:
            for line in tail.read_new():
                self._exports.show(line, roster)
                if self._view is not None:
                    self._view.show(line, roster)
        self._exports.flush()
        if self._view is not None:
            self._view.refresh()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        if self._view is not None:
            self._view.__exit__(kind, value, trace)
