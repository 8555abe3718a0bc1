"""Ctrl-C, a closing terminal and a scheduler's SIGTERM end a command in order, its ranks first.

with signals_stop():                 a signal raises Stopped, wherever the command is
    with stops_held():               but not between the start of a process
        process = Popen(...)         and the moment at which somebody knows how to end it
        stack.callback(end, process)
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hybrid_runtime.errors import Stopped

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_stop() -> Iterator[None]:
    """The first signal raises Stopped in the main thread; later ones do nothing, for ranks are being stopped.

    A terminal that closes is not heard where the command was told not to (nohup).
    """
    heard = [number for number in _NUMBERS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]

    def stop(number: int, frame: FrameType | None) -> None:
        for other in heard:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(f"stopped by {signal.Signals(number).name}")

    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stops_held() -> Iterator[None]:
    """A signal that comes inside is heard at the end. Python hears signals in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    come: list[int] = []
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    held = [number for number, handler in before.items() if callable(handler)]
    for number in held:
        signal.signal(number, lambda number, frame: come.append(number))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, before[number])
    if come:
        signal.raise_signal(come[0])
