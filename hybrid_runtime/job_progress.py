"""Rank 0's word on how far the run is: a line per step in `progress.jsonl`, and a bar under plain torchrun."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Literal, TextIO

from rich.console import Console

from hybrid_runtime.report.progress import ProgressLine, ProgressView
from hybrid_runtime.run_folder import RunFolder

_SECOND_NS = 1e9


class RankProgress:
    """Every rank has one; only rank 0's does anything.

    Args:
        steps: how many steps this side will run.
        tokens_per_step: tokens of the global batch.
        terminal: show lines or a bar on standard error; False when hybrid-runtime shows the file.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        rank: int,
        side: Literal["candidate", "baseline"],
        steps: int,
        tokens_per_step: int,
        terminal: bool,
        quiet: bool,
    ) -> None:
        self._folder = folder
        self._active = rank == 0
        self._side: Literal["candidate", "baseline"] = side
        self._steps = steps
        self._tokens = tokens_per_step
        self._terminal = terminal
        self._quiet = quiet
        self._stack = ExitStack()
        self._file: TextIO | None = None
        self._view: ProgressView | None = None

    def __enter__(self) -> RankProgress:
        if self._active:
            self._file = self._stack.enter_context(self._folder.progress.open("w", encoding="utf-8"))
            if self._terminal:
                self._view = self._stack.enter_context(ProgressView(Console(file=sys.stderr), self._quiet))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def show(self, step: int, phase: str, loss: float | None, times_ns: list[list[float]]) -> None:
        """One finished step; `times_ns` holds (busy, wait, window) of every rank, -1 where not recorded."""
        if self._file is None:
            return
        while self._steps <= step:  # undecided claims asked for more than was expected
            self._steps *= 2
        window_ns = max(row[2] for row in times_ns)
        shares = [100 * row[0] / window_ns for row in times_ns]
        known = min(shares) >= 0  # bare steps record no spans
        busiest = max(range(len(shares)), key=shares.__getitem__)
        idlest = min(range(len(shares)), key=shares.__getitem__)
        line = ProgressLine(
            step=step + 1,
            steps=self._steps,
            side=self._side,
            phase=phase,
            loss=loss,
            tokens_per_s=self._tokens / (window_ns / _SECOND_NS),
            step_time_s=window_ns / _SECOND_NS,
            busiest=(busiest, shares[busiest]) if known else None,
            idlest=(idlest, shares[idlest]) if known else None,
        )
        self._file.write(line.to_line())
        self._file.flush()
        if self._view is not None:
            self._view.show(line)
