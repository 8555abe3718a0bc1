"""Tensors on their way to other ranks: kept alive until they are there, and counted the same on every run."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch.distributed as dist
from torch import Tensor


class Ledger(Protocol):
    """Who counts the bytes of communication buffers."""

    def hold(self, tensor: Tensor) -> None:
        """The tensor's storage is in use by communication from now on."""

    def release(self, tensor: Tensor) -> None:
        """It no longer is."""

    def count_message(self, change_bytes: int) -> None:
        """Bytes of messages on their way out change by this much."""


class UnderWay:
    """What one sender has started. Nothing blocks until `finish`.

    A tensor is dropped when it has been sent, which depends on the peer. The ledger must not: for it the newest message
    counts until the next one starts, or until the step's end.
    """

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger
        self._started: deque[tuple[dist.Work, Tensor]] = deque()
        self._counted_bytes = 0

    def count(self, message_bytes: int) -> None:
        """A message of so many bytes is the newest."""
        if self._ledger is not None:
            self._ledger.count_message(message_bytes - self._counted_bytes)
        self._counted_bytes = message_bytes

    def add(self, work: dist.Work | None, tensor: Tensor) -> None:
        """The tensor is read until the work is done."""
        assert work is not None
        self._started.append((work, tensor))

    def poll(self) -> None:
        """Drops what has been sent; cheap, called between actions."""
        while self._started and self._started[0][0].is_completed():
            self._started.popleft()

    def keep_at_most(self, tensors: int) -> None:
        """Waits for the oldest until no more are left; gloo never says by itself that something has been sent."""
        self.poll()
        while len(self._started) > tensors:
            self._started.popleft()[0].wait()

    def finish(self) -> None:
        """Waits until everything has been sent (every handle is waited on)."""
        while self._started:
            self._started.popleft()[0].wait()
        self.count(0)
