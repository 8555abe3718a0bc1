"""TensorBoard event files: per side and per rank what `figures.py` lists.

    FOLDER/candidate/events.out.tfevents.*    tags `run/loss`, `busy_share/rank3`, `memory_bytes/rank3`
    FOLDER/baseline/events.out.tfevents.*     the same tags, so that TensorBoard draws both sides into one chart

Written directly (one record per step, `tensorboard.summary.writer.record_writer`), without TensorFlow, torch or a
thread.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.report.exports import End
from hybrid_runtime.report.figures import scalars
from hybrid_runtime.report.progress import ProgressLine
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.verdict import Verdict

_FLUSH_S = 2.0


class TensorBoardScalars:
    """Scalars of one run, over its steps and those before the checkpoint from which it went on.

    Args:
        folder: made if it is missing; a sub-folder per side.
        clock: seconds since 1970; exchanged in tests.

    Raises:
        EnvironmentProblem: the package tensorboard is missing.
        UsageError: the folder cannot be written.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.name = f"TensorBoard folder {folder}"
        self._folder = folder
        self._clock = clock
        self._writers: dict[str, Any] = {}
        self._flushed_s = 0.0
        _demand_package()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".write-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as problem:
            raise UsageError(
                f"{self.name}: cannot be written ({problem.strerror}); name another with --tensorboard, or "
                "[telemetry] tensorboard = false"
            ) from None

    def show(self, line: ProgressLine, roster: Roster) -> None:
        """One event with all scalars of the step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line)]
        event = Event(wall_time=self._clock(), step=line.charted_step, summary=Summary(value=values))
        self._writer(line.side).write(event.SerializeToString())

    def flush(self) -> None:
        now_s = self._clock()
        if now_s - self._flushed_s >= _FLUSH_S:
            self._flushed_s = now_s
            for writer in self._writers.values():
                writer.flush()

    def judged(self, verdict: Verdict) -> None:
        """Scalars over steps say nothing of a verdict."""

    def close(self, end: End) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, side: str) -> Any:
        """The side's file, begun with the line that tells its version."""
        if side not in self._writers:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter

            folder = self._folder / side
            folder.mkdir(exist_ok=True)
            now_s = self._clock()
            path = folder / f"events.out.tfevents.{int(now_s):010d}.{socket.gethostname()}.{os.getpid()}.0"
            self._writers[side] = RecordWriter(path.open("wb"))
            self._writers[side].write(Event(wall_time=now_s, file_version="brain.Event:2").SerializeToString())
        return self._writers[side]


def _demand_package() -> None:
    try:
        import tensorboard.compat.proto.event_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as problem:
        raise EnvironmentProblem(
            f"TensorBoard scalars need the package tensorboard, which cannot be imported ({problem}): run `pip install "
            "'hybrid-runtime[tensorboard]'`, or leave --tensorboard and [telemetry] tensorboard out"
        ) from None
