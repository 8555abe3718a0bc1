"""A run of Weights & Biases: what `figures.py` lists, per side and rank, and in the end the verdict.

    candidate/run/loss, candidate/busy_share/rank3, baseline/run/loss, ...    over candidate/step, baseline/step
    summary: verdict, claim/<id>

Where it goes is W&B's own business: WANDB_MODE=offline writes into the run folder, for `wandb sync` later, and
WANDB_API_KEY, WANDB_ENTITY, WANDB_DIR and the others are obeyed too. The package is imported where it is asked for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.report.exports import End
from hybrid_runtime.report.figures import scalars
from hybrid_runtime.report.progress import ProgressLine
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verdict import Verdict

_ADVICE = "or leave --wandb and [telemetry] wandb out"


class WandbRun:
    """One W&B run for one run folder.

    Args:
        project: W&B's project; made there if it is new.
        folder: its name is the run's; W&B keeps its own files in it, unless WANDB_DIR names another place.

    Raises:
        EnvironmentProblem: the package is missing, or W&B does not let the run begin.
    """

    def __init__(self, project: str, folder: RunFolder, deployment: Deployment) -> None:
        self.name = f"Weights & Biases project {project}"
        self._sides: set[str] = set()
        try:
            import wandb
        except ImportError as problem:
            raise EnvironmentProblem(
                f"{self.name}: the package wandb cannot be imported ({problem}): run `pip install "
                f"'hybrid-runtime[wandb]'`, {_ADVICE}"
            ) from None
        self._wandb: Any = wandb
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                group=deployment.name,
                dir=os.environ.get("WANDB_DIR") or _made(folder.path),
                config=deployment.model_dump(mode="json", exclude_none=True),
                settings={"console": "off"},  # what a terminal shows is drawn, not logged
            )
        except (wandb.Error, OSError) as problem:
            raise EnvironmentProblem(
                f"{self.name}: a run cannot begin ({_first_line(problem)}); set WANDB_API_KEY or run `wandb login`, "
                f"set WANDB_MODE=offline to write files for `wandb sync`, {_ADVICE}"
            ) from None

    def show(self, line: ProgressLine, roster: Roster) -> None:
        """All scalars of the step; a side has its own count of steps."""
        with self._as_os_error():
            if line.side not in self._sides:
                self._sides.add(line.side)
                self._run.define_metric(f"{line.side}/*", step_metric=f"{line.side}/step")
            values = {f"{line.side}/{tag}": value for tag, value in scalars(line)}
            self._run.log({f"{line.side}/step": line.charted_step, **values})

    def flush(self) -> None:
        """W&B sends when it likes, from a process of its own."""

    def judged(self, verdict: Verdict) -> None:
        with self._as_os_error():
            self._run.summary["verdict"] = verdict.verdict.value
            for claim in verdict.claims:
                self._run.summary[f"claim/{claim.id}"] = claim.outcome.value

    def close(self, end: End) -> None:
        with self._as_os_error():
            self._run.finish(exit_code=0 if end == "finished" else 1)

    @contextmanager
    def _as_os_error(self) -> Iterator[None]:
        """What W&B raises later ends this export only, as a full disk would."""
        try:
            yield
        except self._wandb.Error as problem:
            raise OSError(errno.EIO, _first_line(problem)) from None


def _made(path: Path) -> str:
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


def _first_line(problem: BaseException) -> str:
    return next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
