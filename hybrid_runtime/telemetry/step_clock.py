"""Times the spans and waits of one step, in memory, and the clock for CPU ranks.

    step      |--- 0F0 ---|      |-------- 0B0 --------|   |- OPTIMIZER -|
    waits        [all_reduce]  [0RECV_B0]   [all_reduce]
                  inside 0F0    between       inside 0B0

The hot path only appends tuples; everything that can wait until the step is over (`assemble`) waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic_ns, thread_time_ns
from typing import Any, NamedTuple, Protocol

from hybrid_runtime.comm.axis import WaitClock
from hybrid_runtime.records import Span, Wait


class Measured(NamedTuple):
    """One step: its window and what filled it, in host nanoseconds (CLOCK_MONOTONIC)."""

    start_ns: int
    end_ns: int
    spans: tuple[Span, ...]
    waits: tuple[Wait, ...]


class StepClock(WaitClock, Protocol):
    """Measures one step at a time. Spans do not nest and belong to the rank's thread; waits come from any thread."""

    def begin_step(self) -> None:
        """Opens the window; call after the barrier."""

    def begin_span(self, name: str) -> None:
        """An action or phase begins."""

    def end_span(self) -> None:
        """It is over."""

    def end_step(self) -> Measured:
        """Closes the window once the device is done, and hands over what was measured."""


class HostClock:
    """The clock of a CPU rank: CLOCK_MONOTONIC for walls, the thread's CPU time beside it.

    One thread per rank: autograd's backward runs in the calling thread there, so its CPU time is charged to the span.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._spans: list[Span] = []
        self._waits: list[Wait] = []
        self._name = ""
        self._span_start_ns = self._span_cpu_ns = 0

    def begin_step(self) -> None:
        self._reset()
        self._start_ns = monotonic_ns()

    def begin_span(self, name: str) -> None:
        assert not self._name, f"{name} begins inside {self._name}: spans do not nest"
        self._name = name
        self._span_start_ns = monotonic_ns()
        self._span_cpu_ns = thread_time_ns()

    def end_span(self) -> None:
        cpu_ns = thread_time_ns() - self._span_cpu_ns
        self._spans.append(Span(self._name, self._span_start_ns, monotonic_ns(), cpu_ns, 0))
        self._name = ""

    def begin_wait(self) -> int:
        return monotonic_ns()

    def end_wait(self, name: str, mark: Any) -> None:
        self._waits.append(Wait(name, mark, monotonic_ns()))

    def end_step(self) -> Measured:
        end_ns = monotonic_ns()
        waits = [
            wait for wait in self._waits if wait.start_ns >= self._start_ns
        ]  # a barrier before the step is not its
        return assemble(self._start_ns, end_ns, self._spans, waits)


class WindowClock:
    """The clock of a bare step: its window and nothing inside, so that the step takes as long as without telemetry.

    Args:
        synchronize: waits until the device is idle; nothing to do on a CPU.
    """

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self._synchronize = synchronize
        self._start_ns = 0

    def begin_step(self) -> None:
        self._synchronize()
        self._start_ns = monotonic_ns()

    def begin_span(self, name: str) -> None:
        return None

    def end_span(self) -> None:
        return None

    def begin_wait(self) -> object:
        return None

    def end_wait(self, name: str, mark: object) -> None:
        return None

    def end_step(self) -> Measured:
        self._synchronize()
        return Measured(self._start_ns, monotonic_ns(), (), ())


def assemble(start_ns: int, end_ns: int, spans: Sequence[Span], waits: Sequence[Wait]) -> Measured:
    """Puts waits in order and charges each span with the waits inside it.

    Waits that overlap (a wait made of waits, or two threads waiting at once) become one, named after the earliest, so
    that no nanosecond is subtracted twice.
    """
    apart: list[Wait] = []
    for wait in sorted(waits, key=lambda wait: (wait.start_ns, -wait.end_ns)):
        if apart and wait.start_ns < apart[-1].end_ns:
            apart[-1] = apart[-1]._replace(end_ns=max(apart[-1].end_ns, wait.end_ns))
        else:
            apart.append(wait)
    return Measured(start_ns, end_ns, tuple(_charge(spans, apart)), tuple(apart))


def _charge(spans: Sequence[Span], waits: Sequence[Wait]) -> list[Span]:
    charged: list[Span] = []
    first = 0
    for span in spans:
        while first < len(waits) and waits[first].end_ns <= span.start_ns:
            first += 1
        wait_ns, index = 0, first
        while index < len(waits) and waits[index].start_ns < span.end_ns:
            wait_ns += min(waits[index].end_ns, span.end_ns) - max(waits[index].start_ns, span.start_ns)
            index += 1
        charged.append(span._replace(wait_ns=wait_ns))
    return charged
