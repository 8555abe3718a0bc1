"""Rank 0's word on how far the run is: a line per step in `progress.jsonl`; a bar and exports under plain torchrun.

every rank's RankNumbers --gathered at the end of a step--> rank 0 --ProgressLine--> progress.jsonl
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import NamedTuple, TextIO

from rich.console import Console

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.job_orders import Order
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.model_flops import model_flops
from hybrid_runtime.records import PLANTED
from hybrid_runtime.report.exports import Exports
from hybrid_runtime.report.progress import ProgressLine, RankLoad, loads_to_tell
from hybrid_runtime.report.progress_view import ProgressView
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.telemetry.recorder import StepSummary
from hybrid_runtime.training.learning_rate import rate_at

_SECOND_NS = 1e9
_SPARED_S = 0.001  # per rank that is named, until ranks are named again: naming one costs some 4 µs between steps
_UNKNOWN = -1.0  # none of these numbers can be below 0, and a gathered row has only floats


class RankNumbers(NamedTuple):
    """What every rank tells all others of one step, as floats; below 0 what it does not know.

    Attributes:
        grad_norm: the global one, the same on every rank.
        written_step: of the newest checkpoint of which the rank's file is on the disk.
        asked_to_stop: 1 once the rank was told to write a checkpoint and leave.
    """

    busy_ns: float
    wait_ns: float
    window_ns: float
    memory_bytes: float
    grad_norm: float
    written_step: float = _UNKNOWN
    asked_to_stop: float = 0


class Served(NamedTuple):
    """What a round of requests brought.

    Attributes:
        tokens: of answers, or of prompts where only prefills are asked for.
        medians: latencies of requests in s, by what [load] calls them; empty where rank 0 alone knows them.
    """

    tokens: int
    medians: Mapping[str, float]


def rank_numbers(
    summary: StepSummary,
    memory_bytes: int | None,
    grad_norm: float | None,
    *,
    written_step: int = -1,
    asked_to_stop: bool = False,
) -> RankNumbers:
    """This rank's numbers of the step that `summary` is of."""
    given = (summary.busy_ns, summary.wait_ns, summary.window_ns, memory_bytes, grad_norm, written_step, asked_to_stop)
    return RankNumbers(*(_UNKNOWN if number is None else float(number) for number in given))


class StepTerms(NamedTuple):
    """What a step's figures need besides what ranks measured of it.

    Attributes:
        model_flops: of one step (planner/model_flops.py).
        peak_flops_per_s: of all devices; None where it is not known.
        learning_rate: by how many steps the model was trained before; None for forward only.
    """

    model_flops: int
    peak_flops_per_s: int | None
    learning_rate: Callable[[int], float] | None

    def mfu(self, step_time_s: float) -> float | None:
        """Model FLOPs utilisation of a step, from 0 to 1."""
        return None if self.peak_flops_per_s is None else self.model_flops / (step_time_s * self.peak_flops_per_s)


def step_terms(deployment: Deployment, plan: Plan, peak_flops_per_s: int | None) -> StepTerms:
    """The terms of every step of a run."""
    rate = partial(rate_at, settings=deployment.optimizer, steps=deployment.workload.steps)
    peak = None if deployment.serves else peak_flops_per_s  # rounds differ in tokens; the verdict counts them
    return StepTerms(model_flops(plan, deployment.shape), peak, rate if plan.workload == "train" else None)


class RankProgress:
    """Every rank has one; only rank 0's, and under plain torchrun those that export, do anything.

    Args:
        replicas: data-parallel replicas, which share the tokens of a step.
        exports: of this machine; empty when hybrid-runtime writes them.
        steps: how many steps this side will run.
        tokens_per_step: tokens of the global batch.
        trained_before: steps of the model up to the checkpoint from which the run goes on.
        terminal: show lines or a bar on standard error; False when hybrid-runtime shows the file.
        clock: seconds; exchanged by tests.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        rank: int,
        replicas: int,
        exports: Exports,
        side: str,
        steps: int,
        tokens_per_step: int,
        terminal: bool,
        quiet: bool,
        trained_before: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._is_first = rank == 0
        self._replicas = replicas
        self._exports = exports
        self._roster = Roster(folder)
        self._side = side
        self._steps = steps
        self._tokens = tokens_per_step
        self._trained_before = trained_before
        self._terminal = terminal
        self._quiet = quiet
        self._clock = clock
        self._terms: StepTerms | None = None
        self._namings = 0
        self._next_naming_s = float("-inf")
        self._stack = ExitStack()
        self._file: TextIO | None = None
        self._view: ProgressView | None = None

    def __enter__(self) -> RankProgress:
        self._stack.enter_context(self._exports)
        if self._is_first:
            self._file = self._stack.enter_context(self._folder.progress.open("w", encoding="utf-8"))
            if self._terminal:
                self._view = self._stack.enter_context(ProgressView(Console(file=sys.stderr), self._quiet))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def begin(self, terms: StepTerms) -> None:
        """The ranks are set up: what their steps' figures are computed with is known."""
        self._terms = terms

    def show(
        self,
        order: Order,
        loss: float | None,
        numbers: Sequence[RankNumbers],
        validation_loss: float | None = None,
        served: Served | None = None,
    ) -> None:
        """One finished step; `numbers` are those of every rank, `served` is what it brought where requests are served.

        Raises:
            EnvironmentProblem: progress.jsonl cannot be written.
        """
        if self._file is None and not self._exports:
            return
        tokens, medians = (self._tokens, {}) if served is None else served
        line = self._line(order, loss, numbers, tokens)
        latencies = {f"{kind}_s": median for kind, median in medians.items()}
        line = line.model_copy(update={"validation_loss": validation_loss, **latencies})
        if self._file is not None:
            self._write(line)
        if self._view is not None:
            self._view.show(line)  # without a table of ranks: drawing one would keep this rank from its work
        self._exports.show(line, self._roster)
        self._exports.flush()

    def _write(self, line: ProgressLine) -> None:
        assert self._file is not None
        try:
            self._file.write(line.to_line())
            self._file.flush()
        except OSError as problem:
            raise EnvironmentProblem(
                f"{self._folder.progress}: cannot be written ({problem.strerror}); free space on that disk"
            ) from None

    def _line(self, order: Order, loss: float | None, numbers: Sequence[RankNumbers], tokens: int) -> ProgressLine:
        while self._steps <= order.step:  # undecided claims asked for more than was expected
            self._steps *= 2
        window_ns = max(rank.window_ns for rank in numbers)
        busy = [rank.busy_ns for rank in numbers]
        told = self._named(busy)
        known = min(busy) >= 0
        busiest, idlest = busy.index(max(busy)), busy.index(min(busy))
        planted, terms, step_time_s = order.purpose == PLANTED, self._terms, window_ns / _SECOND_NS
        if planted:  # the self-test's work is not the model's
            terms = None
        return ProgressLine(
            step=order.step + 1,
            steps=self._steps,
            side=self._side,
            phase=PLANTED if planted else order.phase,
            trained_before=self._trained_before,
            loss=loss,
            grad_norm=_known(numbers[0].grad_norm),
            learning_rate=terms.learning_rate(order.trained) if terms and terms.learning_rate else None,
            mfu=terms.mfu(step_time_s) if terms else None,
            tokens_per_s=0 if planted else tokens / step_time_s,
            step_time_s=step_time_s,
            busiest=(busiest, 100 * busy[busiest] / window_ns) if known else None,
            idlest=(idlest, 100 * busy[idlest] / window_ns) if known else None,
            ranks=tuple(self._load(rank, numbers[rank], window_ns, tokens) for rank in told),
            left_out=len(numbers) - len(told),
        )

    def _named(self, busy: Sequence[float]) -> list[int]:
        """Short steps of many ranks are not all told rank by rank: nobody could see it, and all would wait for it."""
        now_s = self._clock()
        if now_s < self._next_naming_s:
            return []
        named = loads_to_tell(busy, self._namings)
        self._namings += 1
        self._next_naming_s = now_s + _SPARED_S * len(named)
        return named

    def _load(self, rank: int, numbers: RankNumbers, window_ns: float, tokens: int) -> RankLoad:
        busy_ns, wait_ns, memory_bytes = map(_known, (numbers.busy_ns, numbers.wait_ns, numbers.memory_bytes))
        return RankLoad(
            rank=rank,
            busy_percent=None if busy_ns is None else round(100 * busy_ns / window_ns, 2),
            wait_percent=None if wait_ns is None else round(100 * wait_ns / window_ns, 2),
            memory_bytes=None if memory_bytes is None else int(memory_bytes),
            tokens_per_s=round(tokens / self._replicas / (numbers.window_ns / _SECOND_NS), 1),
        )


def _known(number: float) -> float | None:
    """A diverged norm is NaN, which is known."""
    return number if number >= 0 or math.isnan(number) else None
