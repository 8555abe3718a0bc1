"""How long things take on this rank's compute stream: timed a few times, then remembered, and so soon free of cost.

On a GPU a time is known only after the device got there, so nothing is read before its event has passed: the host never
waits.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable
from time import monotonic_ns
from typing import Any, Protocol

import torch

SAMPLES = 5  # the least of so many: the one that was disturbed least


class Stopwatch(Protocol):
    """Marks points in time."""

    def mark(self) -> object:
        """Now, on the compute stream."""

    def elapsed_ns(self, start: Any, end: Any) -> int | None:
        """Between two marks; None while the device has not reached the second."""


class HostStopwatch:
    """For CPU ranks."""

    def mark(self) -> int:
        return monotonic_ns()

    def elapsed_ns(self, start: int, end: int) -> int:
        return end - start


class CudaStopwatch:
    """For GPU ranks: events on the calling thread's current stream."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def elapsed_ns(self, start: torch.cuda.Event, end: torch.cuda.Event) -> int | None:
        reached: bool = end.query()  # type: ignore[no-untyped-call]
        return round(start.elapsed_time(end) * 1e6) if reached else None


def stopwatch_for(device: torch.device) -> Stopwatch:
    return CudaStopwatch() if device.type == "cuda" else HostStopwatch()


class LeastTimes:
    """The least of the first `SAMPLES` times of every key.

    Not locked: its caller must be.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._least_ns: dict[Hashable, int] = {}
        self._missing: dict[Hashable, int] = defaultdict(lambda: SAMPLES)
        self._running: deque[tuple[Hashable, object, object]] = deque()

    def start(self, key: Hashable) -> object | None:
        """A mark to give to `stop`; None once the key has been timed often enough."""
        return self._stopwatch.mark() if self._missing[key] else None

    def stop(self, key: Hashable, start: object | None) -> None:
        """What began at `start` has ended."""
        if start is not None:
            self._running.append((key, start, self._stopwatch.mark()))

    def known_ns(self, key: Hashable) -> int | None:
        """Nanoseconds, or None while the key has not been timed often enough."""
        while self._running:
            timed, start, end = self._running[0]
            elapsed_ns = self._stopwatch.elapsed_ns(start, end)
            if elapsed_ns is None:
                break
            self._running.popleft()
            self._least_ns[timed] = min(elapsed_ns, self._least_ns.get(timed, elapsed_ns))
            self._missing[timed] = max(0, self._missing[timed] - 1)
        return None if self._missing[key] else self._least_ns[key]
