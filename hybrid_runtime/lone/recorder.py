"""The recorder of a lone rank: what every action computed and called, kept in memory.

The clocks are those of a real rank (`telemetry/`): CUDA events less the waits inside, thread CPU time on a CPU. What
the stubs themselves cost in place of other ranks (lone/group.py) is taken out again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from time import thread_time_ns
from typing import Literal, NamedTuple, SupportsFloat

import torch

from hybrid_runtime.comm.axis import Clocks
from hybrid_runtime.lone.group import Call, Traffic
from hybrid_runtime.records import OPTIMIZER, PHASES, TRACE, Memory, Span
from hybrid_runtime.rehearsal import BETWEEN, Calls, RehearsedStep
from hybrid_runtime.schedule.actions import parse_action
from hybrid_runtime.telemetry.cuda_clock import CudaClock
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.telemetry.recorder import NullRecorder, StepSummary
from hybrid_runtime.telemetry.step_clock import HostClock, Measured, StepClock


class _Piece(NamedTuple):
    """What one span called, and the stubs' share of its time."""

    calls: tuple[Call, ...]
    stub_ns: int


class LoneRecorder(NullRecorder):
    """Records steps for as long as it lives.

    Args:
        ledger: weighed in every step, and watching in those that `begin_step` says.
        traffic: of the rank's groups.

    Attributes:
        visit: in which of its turns on the device the rank is.
        window_ns: of the newest step.
        steps: the steps of phase "measure".
        memory: of the watched steps.
        calls: by "<stage><kind>", phase or BETWEEN: how often each call was made in the newest step.
        counts: how many such actions the newest step had.
    """

    def __init__(self, device: torch.device, clocks: Clocks, ledger: ByteLedger, traffic: Traffic) -> None:
        super().__init__(device)
        self._clock: StepClock = CudaClock(device) if device.type == "cuda" else HostClock()
        self._on_cpu = device.type == "cpu"
        self._ledger = ledger
        self._traffic = traffic
        self._pieces: list[_Piece] = []
        self._mark = (0, 0)
        self._watched = self._measures = False
        self._cpu_start_ns = self._stub_start_ns = 0
        self.visit = 0
        self.window_ns = 0
        self.steps: list[RehearsedStep] = []
        self.memory: list[Memory] = []
        self.calls: dict[str, Counter[Call]] = {}
        self.counts: Counter[str] = Counter()
        self._clocks = clocks
        self.take_over()

    def take_over(self) -> None:
        """Waits of the axes are this recorder's from now on, where several share them."""
        self._clocks.current = self._clock

    def begin_step(
        self,
        step: int,
        *,
        block: int = 0,
        phase: Literal["warmup", "measure"] = "measure",
        purpose: str = TRACE,
        ledger: bool = False,
    ) -> None:
        self._watched, self._measures = ledger, phase == "measure"
        self._pieces.clear()
        self._traffic.calls.clear()
        if ledger:
            self._watch = self._ledger.watching()
            self._watch.__enter__()
        self._summary = None
        self._clock.begin_step()
        self._cpu_start_ns, self._stub_start_ns = thread_time_ns(), self._traffic.stub_ns

    def begin_span(self, name: str) -> None:
        if self._watched and name == OPTIMIZER:
            self._ledger.weigh_gradients()
        self.note(name)
        self._mark = (len(self._traffic.calls), self._traffic.stub_ns)
        self._clock.begin_span(name)

    def end_span(self) -> None:
        self._clock.end_span()
        first, stub_ns = self._mark
        self._pieces.append(_Piece(tuple(self._traffic.calls[first:]), self._traffic.stub_ns - stub_ns))

    def close_window(self) -> StepSummary:
        cpu_ns = thread_time_ns() - self._cpu_start_ns - (self._traffic.stub_ns - self._stub_start_ns)
        measured = self._clock.end_step()
        if self._watched:
            self._watch.__exit__(None, None, None)
        self.window_ns = measured.end_ns - measured.start_ns
        computed = [self._compute_ns(span, piece) for span, piece in zip(measured.spans, self._pieces, strict=True)]
        if self._measures:
            self.steps.append(self._step(measured, computed, cpu_ns))
        self._count_calls(measured)
        self._summary = StepSummary(sum(computed), None, self.window_ns)
        return self._summary

    def end_step(
        self, *, loss: SupportsFloat | None = None, grad_norm: SupportsFloat | None = None, tokens: int
    ) -> StepSummary:
        if self._watched:
            self.memory.append(self._ledger.memory(watched=True))
        return super().end_step(loss=loss, grad_norm=grad_norm, tokens=tokens)

    def calls_of_actions(self) -> dict[str, tuple[Calls, ...]]:
        """By "<stage><kind>", phase or BETWEEN: the calls of one such action (of the whole step for BETWEEN)."""
        found = {}
        for key, calls in self.calls.items():
            times = self.counts[key] or 1
            found[key] = tuple(
                Calls(kind=call.kind, ranks=call.ranks, num_bytes=call.num_bytes, count=-(-count // times))
                for call, count in sorted(calls.items())
            )
        return found

    def _compute_ns(self, span: Span, piece: _Piece) -> int:
        if self._on_cpu:
            return max(0, span.cpu_ns - piece.stub_ns)
        return span.end_ns - span.start_ns - span.wait_ns

    def _step(self, measured: Measured, computed: list[int], cpu_ns: int) -> RehearsedStep:
        actions: dict[str, dict[str, int]] = defaultdict(Counter)
        phases: Counter[str] = Counter()
        for span, compute_ns in zip(measured.spans, computed, strict=True):
            if span.name in PHASES:
                phases[span.name] += compute_ns
            else:
                actions[_key(span.name)][span.name] += compute_ns
        window_ns = measured.end_ns - measured.start_ns
        spent_ns = cpu_ns if self._on_cpu else window_ns
        return RehearsedStep(
            visit=self.visit,
            actions_ns={key: tuple(times.values()) for key, times in sorted(actions.items())},
            phases_ns=dict(phases),
            overhead_ns=max(0, spent_ns - sum(computed)),
            window_ns=window_ns,
        )

    def _count_calls(self, measured: Measured) -> None:
        self.calls, self.counts = defaultdict(Counter), Counter()
        inside: Counter[Call] = Counter()
        for name in {span.name for span in measured.spans}:
            self.counts[_key(name)] += 1
        for span, piece in zip(measured.spans, self._pieces, strict=True):
            if piece.calls:
                self.calls[_key(span.name)].update(piece.calls)
                inside.update(piece.calls)
        between = Counter(self._traffic.calls) - inside
        if between:
            self.calls[BETWEEN].update(between)


def _key(name: str) -> str:
    """ "0F3" -> "0F"; phases stay what they are."""
    if name in PHASES:
        return name
    action = parse_action(name)
    return f"{action.stage}{action.kind.value}"
