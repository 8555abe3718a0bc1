"""Who reads answers: standard output, a file, a named pipe. A reader that stops never stops anybody else.

    an answer's text -> give() -> queue of at most QUEUED pieces -> a thread of the client's own -> write

A reader that has gone is noticed by the write, one that stands still by the queue, which gets full. Either leaves a
sentence in `problem`, after which nothing more is written.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

QUEUED = 1024  # pieces of text; a pipe holds some more by itself


class Client:
    """One reader.

    Args:
        name: as sentences name it.
        opened: makes the file descriptor that is written to, when there is something to write.

    Attributes:
        problem: why it is not read any more; None while it is.
    """

    def __init__(self, name: str, opened: Callable[[], int]) -> None:
        self.name = name
        self.problem: str | None = None
        self._opened = opened
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def give(self, text: str) -> bool:
        """Takes a piece of an answer; False when nobody reads any more."""
        if text and self.problem is None:
            if self._queue.qsize() >= QUEUED:
                self.problem = f"{self.name} is not read: {QUEUED} pieces of text wait for its reader"
            else:
                self._start()
                self._queue.put(text.encode(errors="replace"))
        return self.problem is None

    def end(self) -> None:
        """Nothing more will be given."""
        self._queue.put(None)

    def wait(self) -> None:
        """Until everything is written, after `end`; as long as somebody reads."""
        while self._thread is not None and self._thread.is_alive() and self.problem is None:
            self._thread.join(0.05)  # in short waits, between which a signal is heard

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"writes {self.name}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            handle = self._opened()
            try:
                while self.problem is None and (piece := self._queue.get()) is not None:
                    while piece and self.problem is None:
                        piece = piece[os.write(handle, piece) :]
            finally:
                os.close(handle)
        except OSError as problem:
            self.problem = self.problem or f"{self.name} {_in_words(problem)}"


def standard_output() -> Client:
    """This process's own."""
    return Client("standard output", lambda: os.dup(1))


def file_client(path: Path) -> Client:
    """A file that is made for it, or the pipe or device of its name."""
    return Client(str(path), lambda: _open(path))


def _open(path: Path) -> int:
    """A pipe without a reader raises instead of waiting for one."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666)
    os.set_blocking(handle, True)
    return handle


def _in_words(problem: OSError) -> str:
    if problem.errno in (errno.EPIPE, errno.ENXIO):
        return "is not read by anybody"
    return f"cannot be written ({problem.strerror})"
