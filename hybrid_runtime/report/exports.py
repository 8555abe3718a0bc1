"""Figures of a running deployment for other tools: TensorBoard's event files, Prometheus's text files, W&B's runs.

    ProgressLine --Exports--> TensorBoardScalars    RUN_FOLDER/tensorboard, or the folder that was named
                          |-> PrometheusTextfile    the folder that node_exporter's textfile collector reads
                          \\-> WandbRun              a project of Weights & Biases

What is wrong with a folder or package is said before the run. What goes wrong later (a full disk) is said once and ends
that export, not the run.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.records import PLANTED
from hybrid_runtime.report.progress import ProgressLine
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verdict import Verdict

End = Literal["finished", "failed"]


class Export(Protocol):
    """One tool's files. Every method may raise OSError."""

    name: str

    def show(self, line: ProgressLine, roster: Roster) -> None:
        """Takes in one step of one side."""

    def flush(self) -> None:
        """Writes what has come in, if some time has passed since the last writing."""

    def judged(self, verdict: Verdict) -> None:
        """Takes in the verdict."""

    def close(self, end: End) -> None:
        """Writes the final state."""


class Exports:
    """All exports of one run; empty by default. Leaving the `with` block writes the final state.

    Args:
        warn: is told in one sentence when an export had to be given up.
    """

    def __init__(self, exports: Sequence[Export] = (), warn: Callable[[str], None] | None = None) -> None:
        self._exports = list(exports)
        self._warn = warn or _to_stderr

    def __bool__(self) -> bool:
        return bool(self._exports)

    def __enter__(self) -> Exports:
        return self

    def show(self, line: ProgressLine, roster: Roster) -> None:
        """Takes in one step of one side; those of the self-test say nothing about the model."""
        if line.phase != PLANTED:
            self._each(lambda export: export.show(line, roster))

    def flush(self) -> None:
        """Writes what is due; cheap to call often."""
        self._each(lambda export: export.flush())

    def judged(self, verdict: Verdict | None) -> None:
        """The run has a verdict; None where another machine has it."""
        if verdict is None:
            return
        self._each(lambda export: export.judged(verdict))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        end: End = "finished" if kind is None else "failed"
        self._each(lambda export: export.close(end))

    def _each(self, use: Callable[[Export], None]) -> None:
        for export in list(self._exports):
            try:
                use(export)
            except OSError as problem:
                self._exports.remove(export)
                self._warn(f"{export.name}: cannot be written any more ({problem.strerror}); the run goes on without")


def open_exports(
    deployment: Deployment, folder: RunFolder, *, first: bool, warn: Callable[[str], None] | None = None
) -> Exports:
    """The exports that a deployment asks for, each proved to be writable.

    Args:
        folder: of the run; its name is the run's name.
        first: whether this is the machine that tells what concerns the whole run; every machine tells of its own ranks
            (told apart by host name).

    Raises:
        UsageError: a folder cannot be written, or is not there.
        EnvironmentProblem: the package tensorboard or wandb is missing, or W&B does not let a run begin.
    """
    telemetry, name = deployment.telemetry, deployment.name
    exports: list[Export] = []
    if telemetry.tensorboard and first:
        from hybrid_runtime.report.tensorboard_scalars import TensorBoardScalars

        own = telemetry.tensorboard is True
        exports.append(
            TensorBoardScalars(folder.tensorboard if own else Path(str(telemetry.tensorboard)) / folder.name)
        )
    if telemetry.prometheus_textfile is not None:
        from hybrid_runtime.report.prometheus_textfile import PrometheusTextfile

        target = Path(telemetry.prometheus_textfile)
        exports.append(PrometheusTextfile(target, folder.name, name, socket.gethostname(), whole_run=first))
    if telemetry.wandb and first:  # last: what else is wrong is said before a run begins there
        from hybrid_runtime.report.wandb_run import WandbRun

        project = name if telemetry.wandb is True else str(telemetry.wandb)
        exports.append(WandbRun(project, folder, deployment))
    return Exports(exports, warn)


def _to_stderr(sentence: str) -> None:
    print(f"hybrid-runtime: {sentence}", file=sys.stderr, flush=True)
