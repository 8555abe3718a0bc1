"""Who reads answers: standard output, a file, a named pipe. A reader that stops never stops anybody else.

    an answer's text -> give() -> queue -> a thread of the client's own -> write, of all that is queued

A reader that has gone is noticed by the write. One that stands still has taken nothing for STILL_S while QUEUED pieces
wait for it; a number alone would also be reached where pieces come faster than the thread has its turn. Either leaves a
sentence in `problem`, after which nothing more is written.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

QUEUED = 1024  # pieces of text; a pipe holds some more by itself
STILL_S = 2.0
_AT_ONCE_BYTES = 4096  # a write returns when a pipe has room for all of it: more would hide that a slow reader reads


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
        self._since_s = 0.0  # since when pieces wait of which the reader takes nothing

    def give(self, text: str) -> bool:
        """Takes a piece of an answer; False when nobody reads any more."""
        if text and self.problem is None:
            self._start()
            if self._queue.empty():
                self._since_s = time.monotonic()
            if self._queue.qsize() >= QUEUED and time.monotonic() - self._since_s > STILL_S:
                self.problem = f"{self.name} is not read: {QUEUED} pieces of text wait for its reader"
            else:
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
                while self.problem is None and (text := self._queued()):
                    while text and self.problem is None:
                        text = text[os.write(handle, text[:_AT_ONCE_BYTES]) :]
                        self._since_s = time.monotonic()
            finally:
                os.close(handle)
        except OSError as problem:
            self.problem = self.problem or f"{self.name} {_in_words(problem)}"

    def _queued(self) -> memoryview:
        """All that is waiting to be written, at least one piece; nothing when no more will come."""
        pieces = [self._queue.get()]
        while pieces[-1] is not None and not self._queue.empty():
            pieces.append(self._queue.get())
        if pieces[-1] is None:
            self._queue.put(None)  # read again behind what came before it
        return memoryview(b"".join(piece for piece in pieces if piece is not None))


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
