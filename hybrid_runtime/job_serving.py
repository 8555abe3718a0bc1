"""A rank that serves: each step is one round of the load, all its requests sent, answered and written down.

rank 0        traffic -> source -> batcher -> items ->  engine  -> answers -> records/requests.jsonl
other ranks                                             engine follows
all           barrier | round | window closed, numbers gathered, record written | barrier | next round ...
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from io import FileIO
from statistics import median
from time import monotonic_ns
from types import TracebackType
from typing import Protocol

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import EnvironmentProblem, RunError
from hybrid_runtime.job_orders import Order, orders
from hybrid_runtime.job_planted import run_planted_step, with_work
from hybrid_runtime.job_progress import RankNumbers, RankProgress, Served, rank_numbers
from hybrid_runtime.records import BETWEEN_STEPS
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.serving.batcher import Batcher, batcher_of
from hybrid_runtime.serving.latencies import LATENCIES
from hybrid_runtime.serving.load import Traffic
from hybrid_runtime.serving.request_records import RequestRecord, record_of, to_lines
from hybrid_runtime.serving.requests import Answer, Source
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.turns import Turns


def serve(rounds: Rounds, turns: Turns | None, progress: RankProgress) -> None:
    """All rounds of a rank, and the planted steps of the self-test among them."""
    groups, recorder = rounds.groups, rounds.recorder
    for order, work in with_work(orders(rounds.deployment, turns, groups), groups.device):
        if work:
            _, numbers = run_planted_step(groups, recorder, work, order)
            served = None
        else:
            served, numbers = rounds.run(order)
        progress.show(order, None, numbers, served=served)


class Serves(Protocol):
    """What a round needs of `inference.engine.Engine`."""

    def serve(self, source: Source, batcher: Batcher) -> list[Answer]:
        """On rank 0: until the source is exhausted and every answer has ended."""

    def follow(self) -> None:
        """On all other ranks: as long."""


@dataclass
class Rounds:
    """The rounds of one rank, with `with`: rank 0 writes what became of every request.

    Args:
        traffic: what is asked in every round; known to rank 0 alone.
    """

    deployment: Deployment
    engine: Serves
    groups: Groups
    recorder: NullRecorder
    folder: RunFolder
    traffic: Traffic | None
    _file: FileIO | None = None
    _has_judged: bool = False
    _latencies: dict[str, list[Fraction]] = field(default_factory=lambda: {kind: [] for kind in LATENCIES})

    def __enter__(self) -> Rounds:
        if self.traffic is not None:
            try:
                self._file = self.folder.requests.open("wb", buffering=0)
            except OSError as problem:
                raise self._unwritable(str(problem.strerror)) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def run(self, order: Order) -> tuple[Served, list[RankNumbers]]:
        """One round.

        Returns:
            What it brought, and every rank's numbers.

        Raises:
            RunError: a request was refused, or cancelled because the model's numbers are not finite.
            EnvironmentProblem: the records cannot be written.
        """
        self.groups.barrier()
        order.begin(self.recorder)
        answered = self._serve(order.step)
        summary = self.recorder.close_window()
        mine = rank_numbers(summary, self.recorder.memory_bytes, None)
        everyone = self.groups.gather_numbers([float(_tokens(self.deployment, answered)), *mine])
        tokens = int(everyone[0][0])
        self.recorder.note(BETWEEN_STEPS)
        self.recorder.end_step(tokens=tokens)
        self._write(answered)
        return Served(tokens, self._medians(order, answered)), [RankNumbers(*row[1:]) for row in everyone]

    def _serve(self, step: int) -> list[RequestRecord]:
        """The round's requests on rank 0; none on the others."""
        if self.traffic is None:
            self.engine.follow()
            return []
        batcher = batcher_of(self.deployment)
        began_ns = monotonic_ns()
        answers = self.engine.serve(self.traffic.begin(), batcher)
        return [record_of(answer, step, began_ns) for answer in answers]

    def _write(self, answered: Sequence[RequestRecord]) -> None:
        if self._file is None:
            return
        lines = to_lines(answered).encode()
        try:
            written = self._file.write(lines)
        except OSError as problem:
            raise self._unwritable(str(problem.strerror)) from None
        if written != len(lines):
            raise self._unwritable(f"only {written} of {len(lines)} bytes were taken")
        lost = next((record for record in answered if not record.is_answered), None)
        if lost is not None:
            raise RunError(f"step {lost.step}: request {lost.id} was {lost.end}: {lost.why}")

    def _medians(self, order: Order, answered: Sequence[RequestRecord]) -> dict[str, float]:
        """Median latencies in seconds: of all judged rounds so far; before there are any, of this one."""
        judged = order.phase == "measure"
        if not self._has_judged:
            self._latencies = {kind: [] for kind in LATENCIES}
        self._has_judged = self._has_judged or judged
        for kind in LATENCIES if judged or not self._has_judged else ():
            for record in answered:
                if (latency := record.latency_ns(kind)) is not None:
                    insort(self._latencies[kind], latency)
        return {kind: float(median(found)) / 1e9 for kind, found in self._latencies.items() if found}

    def _unwritable(self, why: str) -> EnvironmentProblem:
        return EnvironmentProblem(f"{self.folder.requests}: cannot be written ({why}); free space on that disk")


def _tokens(deployment: Deployment, answered: Sequence[RequestRecord]) -> int:
    """What a round is worth: tokens of answers, or of prompts where only prefills are asked for."""
    if deployment.workload.kind == "generate":
        return sum(record.output_tokens for record in answered)
    return sum(record.prompt_tokens for record in answered)
