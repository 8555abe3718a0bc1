"""The running sides of a measurement: started, watched, stopped. No torch here.

candidate           RUN/
baseline            RUN/baseline/                the declared one
baseline-tp_only    RUN/baselines/tp_only/       another kind, for comparison only
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from hybrid_runtime.deployment import BaselineKind, Deployment
from hybrid_runtime.errors import ExitCode, PlanError, Preempted, RunError, Stopped
from hybrid_runtime.launcher import Launched, Rendezvous, start
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import baseline_deployment, make_plan
from hybrid_runtime.run_folder import RunFolder, read_failures, write_whole
from hybrid_runtime.stop_signals import stops_held
from hybrid_runtime.turns import BASELINE, CANDIDATE
from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.static import static_checks

_TICK_S = 0.1
_WORDS_S = 10.0  # the ranks wait for each other as long as this command for them, and should speak first


class Sides:
    """`with Sides(deployment, folder, on_tick) as sides`: whatever happens, no rank outlives the block.

    Args:
        folder: of the run, which is the candidate's.
        on_tick: called some ten times a second while something is waited for.
        planned: the candidate follows the plan that lies in its folder.
        resume: from which checkpoint the candidate goes on.
    """

    def __init__(
        self,
        deployment: Deployment,
        folder: RunFolder,
        on_tick: Callable[[], None],
        *,
        planned: bool = False,
        resume: str | None = None,
    ) -> None:
        self._deployment = deployment
        self._folder = folder
        self._on_tick = on_tick
        self._planned = planned
        self._resume = resume
        self._running: dict[str, Launched] = {}
        self._timeout_s = deployment.measurement.timeout_s
        self._deadline_s = time.monotonic() + self._timeout_s + _WORDS_S
        self._last_tick_s = 0.0
        self._progress_bytes = 0

    def __enter__(self) -> Sides:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for side in self._running.values():
            side.stop()
        if isinstance(value, RunError | Stopped):
            self._say_what_is_whole(value)

    def _say_what_is_whole(self, problem: RunError | Stopped) -> None:
        """Ranks that were given the time left a checkpoint, which is better news than that they were stopped."""
        left = [failure for side in self._running.values() for failure in read_failures(side.folder)]
        words = [failure.message for failure in left if failure.exit_code == ExitCode.STOPPED]
        if words:
            raise Preempted(words[0]) from problem
        if isinstance(problem, Stopped):
            raise Stopped(f"{problem}; what was recorded so far is kept") from problem

    def __contains__(self, name: str) -> bool:
        return name in self._running

    def start_candidate(self, rendezvous: Rendezvous, *, in_turns: bool) -> None:
        """Its deployment, and the plan that it follows, lie in the folder already."""
        arguments = self._turn_arguments(CANDIDATE) if in_turns else []
        if self._planned:
            arguments += ["--plan", str(self._folder.plan_of_node(rendezvous.node_rank))]
        if self._resume is not None:
            arguments += ["--resume", self._resume]
        with stops_held():
            self._running[CANDIDATE] = start(self._folder, self._deployment, rendezvous, arguments)

    def start_baseline(self, kind: BaselineKind | None = None) -> str | None:
        """Starts the declared baseline, or one of another kind; returns its name, or None where it cannot be run.

        Why it cannot is left in its `infeasible.txt`.
        """
        name = BASELINE if kind is None else f"{BASELINE}-{kind}"
        side = _folder_of(self._folder, name).create()
        empty(side.failures)
        side.infeasible.unlink(missing_ok=True)  # of an attempt that was given up
        try:
            baseline = _possible(baseline_deployment(self._deployment, kind))
        except PlanError as problem:
            write_whole(side.infeasible, f"{problem}\n")
            return None
        write_whole(side.deployment, baseline.canonical_json())
        with stops_held():
            self._running[name] = start(side, baseline, Rendezvous(), self._turn_arguments(name))
        return name

    def _turn_arguments(self, name: str) -> list[str]:
        return ["--turns", str(self._folder.turns), "--side", name]

    def watch(self) -> None:
        """Called again and again while sides run: notices a failed side and time running out, and moves the progress.

        Raises:
            RunError: a side has failed, or no step was finished for too long. A declared baseline without memory only
                drops out, and another kind for whatever reason: it decides nothing.
        """
        now_s = time.monotonic()
        if now_s - self._last_tick_s < _TICK_S:
            return
        self._last_tick_s = now_s
        for name, side in list(self._running.items()):
            self._check(name, side)
        self._on_tick()
        progress_bytes = sum(_size(side.folder.progress) for side in self._running.values())
        if progress_bytes != self._progress_bytes:
            self._progress_bytes, self._deadline_s = progress_bytes, now_s + self._timeout_s + _WORDS_S
        if now_s > self._deadline_s:
            raise RunError(f"no step was finished for {self._timeout_s} s; see log.txt, or raise measurement.timeout_s")

    def _check(self, name: str, side: Launched) -> None:
        try:
            side.check_alive()
        except RunError as problem:
            without_memory = "out of memory" in str(problem) or "killed by SIGKILL" in str(problem)
            if name == CANDIDATE or (name == BASELINE and not without_memory):
                raise
            write_whole(_folder_of(self._folder, name).infeasible, f"{problem}\n")
            self._running.pop(name)

    def wait(self, name: str | None = None) -> None:
        """Until one side, or every side, has come to its end.

        Raises:
            RunError: as `watch`.
        """
        names = [name] if name else list(self._running)
        while any(each in self._running and self._running[each].is_running() for each in names):
            self.watch()
            time.sleep(_TICK_S)
        self._last_tick_s = 0.0
        self.watch()
        for each in names:
            self._running.pop(each, None)


def empty(folder: Path) -> None:
    """Makes a folder, and clears what an attempt left that ended before its first record."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()


def _folder_of(folder: RunFolder, name: str) -> RunFolder:
    return folder.baseline if name == BASELINE else folder.other_baseline(name.removeprefix(f"{BASELINE}-"))


def _possible(baseline: Deployment) -> Deployment:
    """The baseline, if nothing in its file rules it out and a plan can be made for it.

    Raises:
        PlanError: it cannot run.
    """
    wrong = [row.detail for row in static_checks(baseline) if row.outcome is Outcome.FAIL]
    if wrong:
        raise PlanError("; ".join(wrong))
    if baseline.shape is not None and baseline.batch is not None:
        costs = unit_costs(
            baseline.shape,
            microbatch_size=baseline.batch.microbatch_size,
            sequence_length=baseline.batch.sequence_length,
            workload=baseline.workload.passes,
        )
        make_plan(baseline, costs)
    return baseline


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
