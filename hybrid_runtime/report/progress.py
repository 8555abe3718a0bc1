"""How far a run is. Rank 0 writes a line per step; whoever started the run shows it.

    rank 0 --ProgressLine--> progress.jsonl --ProgressFollower--> ProgressView    (started by hybrid-runtime)
    rank 0 --ProgressLine---------------------------------------> ProgressView    (plain torchrun)

A terminal gets a bar per side and the newest figures; anything else gets plain lines, one every two seconds at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from hybrid_runtime.report.cells import duration_text, printable, rate_text

PLAIN_INTERVAL_S = 2.0


class ProgressLine(BaseModel):
    """One finished step of one side.

    Attributes:
        step: steps that this side has finished, 1 .. steps.
        loss: mean loss of the step; None where it is not known (forward only, or another host holds the head).
        busiest, idlest: (rank, compute-busy percent of the step); None where busy shares were not exchanged.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_inf_nan="strings"
    )  # a diverged loss is shown as nan

    step: int
    steps: int
    side: Literal["candidate", "baseline"] = "candidate"
    phase: str
    loss: float | None = None
    tokens_per_s: float
    step_time_s: float
    busiest: tuple[int, float] | None = None
    idlest: tuple[int, float] | None = None

    def to_line(self) -> str:
        """One line of JSON, newline included."""
        return self.model_dump_json() + "\n"

    def figures(self) -> str:
        """ "loss 2.513  5 343 tokens/s  383 ms/step  busiest rank 3 91 %  idlest rank 0 72 %"."""
        parts = [] if self.loss is None else [f"loss {self.loss:.3f}"]
        parts += [f"{rate_text(self.tokens_per_s)} tokens/s", f"{duration_text(self.step_time_s)}/step"]
        for word, who in (("busiest", self.busiest), ("idlest", self.idlest)):
            if who is not None:
                parts.append(f"{word} rank {who[0]} {who[1]:.0f} %")
        return "  ".join(parts)

    def __str__(self) -> str:
        return printable(f"{self.side} step {self.step}/{self.steps} ({self.phase})  {self.figures()}")


class ProgressTail:
    """Reads what was appended to a progress.jsonl since the last look; the file may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_new(self) -> list[ProgressLine]:
        """The complete lines since the last call; a half-written one is left for the next, one that is no record is
        left out (progress is a picture: it never fails a run)."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return list(_parsed(complete.splitlines()))


def _parsed(lines: Iterable[bytes]) -> Iterable[ProgressLine]:
    for line in lines:
        try:
            yield ProgressLine.model_validate_json(line)
        except ValidationError:
            continue


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
        self._bars = _Bars(console) if console.is_terminal and not quiet else None

    def __enter__(self) -> ProgressView:
        if self._bars is not None:
            self._bars.start()
        return self

    def show(self, line: ProgressLine) -> None:
        """Shows one step, or keeps it back if another was shown a moment ago."""
        self._last[line.side] = line
        if self._bars is not None:
            self._bars.show(line)
        elif not self._quiet and self._is_due(line):
            self._print(line)

    def _is_due(self, line: ProgressLine) -> bool:
        if line.side not in self._printed or line.step >= line.steps:
            return True
        return self._clock() - self._printed[line.side][1] >= PLAIN_INTERVAL_S

    def _print(self, line: ProgressLine) -> None:
        self._printed[line.side] = (line.step, self._clock())
        self._console.print(Text(str(line)), soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            return
        for side, line in self._last.items():
            if side not in self._printed or self._printed[side][0] != line.step:
                self._print(line)


class ProgressFollower:
    """A view fed from the files of running sides: `update()` again and again, and a last time when it closes."""

    def __init__(self, paths: Sequence[Path], console: Console, *, quiet: bool = False) -> None:
        self._tails = [ProgressTail(path) for path in paths]
        self._view = ProgressView(console, quiet)

    def __enter__(self) -> ProgressFollower:
        self._view.__enter__()
        return self

    def update(self) -> None:
        """Shows what the ranks have written since the last call."""
        for tail in self._tails:
            for line in tail.read_new():
                self._view.show(line)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        self._view.__exit__(kind, value, trace)


class _Bars(Progress):
    """A bar per side with its time to go, and below each bar the side's newest figures."""

    def __init__(self, console: Console) -> None:
        self._tasks_of: dict[str, TaskID] = {}
        super().__init__(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[phase]:<7}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            expand=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            yield Text(task.fields["figures"])

    def show(self, line: ProgressLine) -> None:
        """Moves the side's bar; the first line of a side makes it."""
        phase = printable(line.phase).replace("[", "(")  # this column reads markup
        if line.side not in self._tasks_of:
            self._tasks_of[line.side] = self.add_task(line.side, total=line.steps, phase=phase, figures="")
        task = self._tasks_of[line.side]
        self.update(task, completed=line.step, total=line.steps, phase=phase, figures=line.figures())
