"""The clock of a CUDA rank: timing events on the stream, read after the step, converted to host time.

    host    t0 t1                                                   synchronize
    stream   A |S--- 0F0 ---E|S[wait]E|S--- 0B0 ---E|

A is the step's anchor: recorded on the idle stream and waited for at once, so it happened between t0 and t1. The host
time of every event is then (t0 + t1) / 2 + elapsed(A, event). CUDA reports float32 milliseconds, whose spacing is
0.03 us at 0.5 s and 1 us at 10 s: hence an anchor per step. All points are taken from the one anchor, so that rounding
keeps their order. Nothing synchronises between the anchor and the end of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import Any, NamedTuple, Protocol

import torch

from hybrid_runtime.records import Span, Wait
from hybrid_runtime.telemetry.step_clock import Measured, assemble


class TimingEvent(Protocol):
    """What is needed of `torch.cuda.Event(enable_timing=True)`."""

    def record(self) -> None:
        """Marks a point on the calling thread's current stream."""

    def synchronize(self) -> None:
        """Blocks the host until the point is reached."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from here to `end_event`."""


class _Interval(NamedTuple):
    name: str
    start: TimingEvent
    end: TimingEvent


def _cuda_event() -> TimingEvent:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class CudaClock:
    """Measures spans and waits where they happen, on the device.

    Safe to call from autograd's device thread: lists are appended to and popped from, which Python does atomically.

    Args:
        device: the rank's GPU.
        make_event: makes a timing event; exchanged in tests.
        synchronize: waits until the device is idle; exchanged in tests.
    """

    def __init__(
        self,
        device: torch.device,
        make_event: Callable[[], TimingEvent] | None = None,
        synchronize: Callable[[], None] | None = None,
    ) -> None:
        self._make_event = make_event or _cuda_event
        self._synchronize = synchronize or (lambda: torch.cuda.synchronize(device))
        self._pool: list[TimingEvent] = []
        self._anchor: TimingEvent | None = None  # None outside steps
        self._serial = 0
        self._reset()

    def _reset(self) -> None:
        self._spans: list[_Interval] = []
        self._waits: list[_Interval] = []
        self._open: tuple[str, TimingEvent] | None = None

    def begin_step(self) -> None:
        self._reset()
        self._synchronize()  # the anchor must not queue behind what came before the step
        anchor = self._take()
        t0_ns = monotonic_ns()
        anchor.record()
        anchor.synchronize()
        t1_ns = monotonic_ns()
        self._anchor_ns = (t0_ns + t1_ns) // 2
        self._anchor = anchor
        self._serial += 1
        self._start_ns = monotonic_ns()

    def begin_span(self, name: str) -> None:
        assert self._open is None, f"{name} begins inside {self._open}: spans do not nest"
        self._open = (name, self._recorded())

    def end_span(self) -> None:
        assert self._open is not None, "no span is open"
        name, start = self._open
        self._spans.append(_Interval(name, start, self._recorded()))
        self._open = None

    def begin_wait(self) -> tuple[int, TimingEvent] | None:
        """An event and the step it belongs to: a wait that straddles two steps belongs to neither."""
        return None if self._anchor is None else (self._serial, self._recorded())

    def end_wait(self, name: str, mark: Any) -> None:
        if mark is not None and mark[0] == self._serial and self._anchor is not None:
            self._waits.append(_Interval(name, mark[1], self._recorded()))

    def end_step(self) -> Measured:
        self._synchronize()
        end_ns = monotonic_ns()
        anchor, self._anchor = self._anchor, None
        assert anchor is not None, "no step is open"

        def host_ns(event: TimingEvent) -> int:  # the anchor is known to a few us only: nothing may leave the window
            return min(max(self._anchor_ns + round(anchor.elapsed_time(event) * 1e6), self._start_ns), end_ns)

        spans = [Span(name, host_ns(start), host_ns(end), -1, 0) for name, start, end in self._spans]
        waits = [Wait(name, host_ns(start), host_ns(end)) for name, start, end in self._waits]
        for _, start, end in (*self._spans, *self._waits):
            self._pool += (start, end)
        self._pool.append(anchor)
        return assemble(self._start_ns, end_ns, spans, waits)

    def _take(self) -> TimingEvent:
        try:
            return self._pool.pop()
        except IndexError:
            return self._make_event()

    def _recorded(self) -> TimingEvent:
        event = self._take()
        event.record()
        return event
