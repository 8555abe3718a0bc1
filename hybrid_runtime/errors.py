"""Every error a user can meet, as one tree; each carries what is wrong, where, and what to do about it.

    HybridRuntimeError             exit code 4
      UsageError                   exit code 2: a file, key, value or command-line argument is wrong
        DeploymentError              the deployment file; holds every problem found in it
        PlanError                    the plan cannot be built or does not fit the file
        RecordsError                 exit code 4: a run folder is damaged, incomplete or edited
        CheckpointError              exit code 4: a checkpoint is damaged or incomplete
      EnvironmentProblem           exit code 4: the machine lacks something (a GPU, a port, disk space, a package)
      RunError                     exit code 4: a rank failed; names rank, stage, step and action
        NotFinite                    the loss or a gradient is not finite; names the unit
        Preempted                    exit code 5: the run was asked to stop, and left a whole checkpoint
      Stopped                      exit code 4: the command was told to stop (Ctrl-C, SIGTERM)

`assert` is for the project's own bugs only; whatever a user can cause raises one of these.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """What every command returns to the shell. Precedence when several apply: 4 > 2 > 1 > 3 > 0.

    STOPPED means that nothing is lost: run the same command again with `--resume latest`.
    """

    PASS = 0
    FAIL = 1
    USAGE = 2
    INCONCLUSIVE = 3
    ERROR = 4
    STOPPED = 5


class HybridRuntimeError(Exception):
    """Base of all errors shown to a user as one sentence, without a traceback."""

    exit_code: ExitCode = ExitCode.ERROR


class UsageError(HybridRuntimeError):
    """A file, key, value or argument given by the user is wrong."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file: the dotted key, the value found there, what is wrong and how to mend it."""

    key: str
    value: str
    message: str
    fix: str

    def __str__(self) -> str:
        shown = f" = {self.value}" if self.value else ""
        return f"{self.key}{shown}: {self.message}; {self.fix}"


class DeploymentError(UsageError):
    """The deployment file cannot be used. `problems` holds all of them, not only the first."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        super().__init__(f"{source}: {count}{lines}")


class PlanError(UsageError):
    """No plan can be built from the deployment, or a plan file does not fit it."""


class RecordsError(UsageError):
    """A run folder is damaged, incomplete or was edited after the run."""

    exit_code = ExitCode.ERROR


class CheckpointError(UsageError):
    """A checkpoint is damaged or incomplete."""

    exit_code = ExitCode.ERROR


class EnvironmentProblem(HybridRuntimeError):
    """The machine lacks something that the deployment needs."""


class RunError(HybridRuntimeError):
    """A rank failed while running; the message names rank, stage, step and action.

    Attributes:
        alike: every rank raises it, with the same words.
        where: rank, stage, step, action and unit, where the message begins with them.
    """

    alike: ClassVar[bool] = False

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message if where is None else f"{where}: {message}")
        self.where = where


class Stopped(HybridRuntimeError):
    """The command was told to stop. No RunError: what may go on without a rank must not go on after this."""


class NotFinite(RunError):
    """The loss or a gradient is not finite; the message names the first unit that made it so, and its rank."""

    alike = True


class Preempted(RunError):
    """The run was asked to stop, and left a whole checkpoint to continue from."""

    alike = True
    exit_code = ExitCode.STOPPED
