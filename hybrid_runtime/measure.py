"""Runs a deployment, alone or against its baseline in alternating blocks, and has the files judged. No torch here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError, RunError, UsageError
from hybrid_runtime.launcher import Launched, Rendezvous, start
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import baseline_deployment, make_plan
from hybrid_runtime.report.progress import ProgressFollower
from hybrid_runtime.report.write import write_reports
from hybrid_runtime.run_folder import RunFolder, write_whole
from hybrid_runtime.turns import BASELINE, CANDIDATE, abba, give_turn, stop
from hybrid_runtime.verdict import Verdict, overridden
from hybrid_runtime.verifier.judge import judge, write_verdict

_TICK_S = 0.1


def run_alone(
    deployment: Deployment, folder: RunFolder, rendezvous: Rendezvous, console: Console, *, quiet: bool
) -> Verdict | None:
    """Runs the candidate only; claims that need a baseline stay INCONCLUSIVE(not_measured).

    Of several machines, which share the run folder, the first shows the progress and judges; the others return None.

    Raises:
        RunError: a rank failed; names rank, stage, step and action.
    """
    _prepare(folder, deployment, rendezvous)
    progress = [folder.progress] if rendezvous.is_first else []
    with _sides() as sides, ProgressFollower(progress, console, quiet=quiet) as view:
        sides[CANDIDATE] = start(folder, deployment, rendezvous)
        _wait(sides, _Watch(deployment, folder, sides, view.update))
    return judge_and_report(folder) if rendezvous.is_first else None


def run_against_baseline(
    deployment: Deployment,
    folder: RunFolder,
    console: Console,
    *,
    quiet: bool,
    overrides: Mapping[str, str] | None = None,
) -> Verdict:
    """Runs candidate and baseline on the same devices in blocks A B B A, then judges.

    Both sides' processes live throughout; one works while the other sleeps. A baseline that cannot run leaves a
    sentence in `baseline/infeasible.txt`, and the speed claims become INCONCLUSIVE(baseline_infeasible).

    Raises:
        RunError: the candidate failed, or the baseline for another reason than its memory.
    """
    _prepare(folder, deployment, Rendezvous())
    _empty(folder.turns)
    progress = [folder.progress, folder.baseline.progress]
    with _sides() as sides, ProgressFollower(progress, console, quiet=quiet) as view:
        sides[CANDIDATE] = start(folder, deployment, Rendezvous(), _turn_arguments(folder, CANDIDATE))
        baseline = _start_baseline(deployment, folder)
        if baseline is not None:
            sides[BASELINE] = baseline
        watch = _Watch(deployment, folder, sides, view.update)
        for side, block in [(CANDIDATE, 0), (BASELINE, 0), *abba(deployment.measurement.blocks)]:
            give_turn(folder.turns, side, block, watch, wanted=lambda side=side: side in sides)  # type: ignore[misc]
        stop(folder.turns)
        _wait(sides, watch)
    return judge_and_report(folder, overrides)


def judge_and_report(folder: RunFolder, overrides: Mapping[str, str] | None = None) -> Verdict:
    """Judges the files of a run folder and writes verdict.json and the reports beside them."""
    verdict = overridden(judge(folder.path), overrides or {})
    write_verdict(verdict, folder.verdict)
    write_reports(folder, verdict)
    return verdict


def _prepare(folder: RunFolder, deployment: Deployment, rendezvous: Rendezvous) -> None:
    if deployment.model is None or deployment.batch is None:
        missing = " and ".join(f"[{name}]" for name in ("model", "batch") if getattr(deployment, name) is None)
        raise UsageError(f"{deployment.name}: a run needs {missing}; add it (`check` alone works without)")
    folder.refuse_used()
    folder.create()
    if rendezvous.is_first:
        _empty(folder.failures)
    write_whole(folder.deployment_of_node(rendezvous.node_rank), deployment.canonical_json())


def _empty(folder: Path) -> None:
    """An earlier attempt may have ended before its first record."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()


def _turn_arguments(folder: RunFolder, side: str) -> list[str]:
    return ["--turns", str(folder.turns), "--side", side]


def _start_baseline(deployment: Deployment, folder: RunFolder) -> Launched | None:
    """Starts the declared baseline, or says why it cannot be run."""
    if deployment.baseline is None:
        return None
    side = folder.baseline.create()
    _empty(side.failures)
    try:
        baseline = baseline_deployment(deployment)
        if baseline.shape is not None and baseline.batch is not None:
            make_plan(
                baseline,
                unit_costs(
                    baseline.shape,
                    microbatch_size=baseline.batch.microbatch_size,
                    sequence_length=baseline.batch.sequence_length,
                    workload=baseline.workload.kind,
                ),
            )
    except PlanError as problem:
        write_whole(side.infeasible, f"{problem}\n")
        return None
    write_whole(side.deployment, baseline.canonical_json())
    return start(side, baseline, Rendezvous(), _turn_arguments(folder, BASELINE))


class _Watch:
    """Called again and again while sides run: notices a failed side, time running out, and moves the progress bar."""

    def __init__(
        self, deployment: Deployment, folder: RunFolder, sides: dict[str, Launched], on_tick: Callable[[], None]
    ) -> None:
        self._timeout_s = deployment.measurement.timeout_s
        self._deadline_s = time.monotonic() + self._timeout_s
        self._progress_bytes = 0
        self._folder = folder
        self._sides = sides
        self._on_tick = on_tick
        self._last_tick_s = 0.0

    def __call__(self) -> None:
        """Raises RunError when a side has failed or the time is up; a baseline without memory only drops out."""
        now_s = time.monotonic()
        if now_s - self._last_tick_s < _TICK_S:
            return
        self._last_tick_s = now_s
        for name, side in list(self._sides.items()):
            try:
                side.check_alive()
            except RunError as problem:
                if name == CANDIDATE or "out of memory" not in str(problem):
                    raise
                write_whole(self._folder.baseline.infeasible, f"{problem}\n")
                self._sides.pop(name)
        self._on_tick()
        progress_bytes = sum(_size(side.folder.progress) for side in self._sides.values())
        if progress_bytes != self._progress_bytes:
            self._progress_bytes, self._deadline_s = progress_bytes, now_s + self._timeout_s
        if now_s > self._deadline_s:
            raise RunError(f"no step was finished for {self._timeout_s} s; see log.txt, or raise measurement.timeout_s")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _wait(sides: dict[str, Launched], watch: _Watch) -> None:
    while any(side.is_running() for side in sides.values()):
        watch()
        time.sleep(_TICK_S)
    watch()


@contextmanager
def _sides() -> Iterator[dict[str, Launched]]:
    """The running sides by name. Whatever happens, no rank outlives the command."""
    sides: dict[str, Launched] = {}
    try:
        yield sides
    finally:
        for side in sides.values():
            side.stop()
