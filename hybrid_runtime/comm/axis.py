"""One rank's view of one axis of the mesh, and to whom waits on it are reported: a clock, and a watch for hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist

from hybrid_runtime.comm.shared_memory import SharedMemory


class WaitClock(Protocol):
    """Whoever measures waits: `begin_wait` and `end_wait` enclose the time the compute stream waits for other ranks."""

    def begin_wait(self) -> object:
        """A mark taken just before the wait."""

    def end_wait(self, name: str, mark: object) -> None:
        """Just after the wait; `name` says for what, e.g. "all_reduce" or "1RECV_F3"."""


class NoClock:
    """Measures nothing: layers used outside the runtime, and bare runs."""

    def begin_wait(self) -> object:
        return None

    def end_wait(self, name: str, mark: object) -> None:
        return None


class WaitWatch(Protocol):
    """Whoever can say what a rank that is stuck waits for."""

    def wait(self, name: str, axis: str) -> None:
        """A wait begins, on an axis of that name."""

    def go_on(self) -> None:
        """It is over. After an error it is not: what was waited for is still to be read."""

    def doing(self, action: str) -> None:
        """What is done from here on, outside the steps."""


class NoWatch:
    """Nobody looks."""

    def wait(self, name: str, axis: str) -> None:
        return None

    def go_on(self) -> None:
        return None

    def doing(self, action: str) -> None:
        return None


@dataclass(slots=True)
class Clocks:
    """The clock in force. One object is shared by every axis of a rank, so it can be exchanged at one place."""

    current: WaitClock = field(default_factory=NoClock)
    watch: WaitWatch = field(default_factory=NoWatch)

    @contextmanager
    def watching(self, name: str, axis: str) -> Iterator[None]:
        """Encloses a blocking call that no clock measures."""
        self.watch.wait(name, axis)
        yield
        self.watch.go_on()


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis as this rank sees it.

    Attributes:
        size: ranks on the axis.
        rank: this rank's place on it.
        group: the process group; None exactly when size is 1, so that nothing needs torch.distributed then.
        clocks: where waits are reported.
        shared: the faster way for all-reduces of CPU ranks on one host; None where there is none.
        name: of the axis, for whoever looks for the cause of a hang.
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    clocks: Clocks = field(default_factory=Clocks)
    shared: SharedMemory | None = None
    name: str = "axis"

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Reports the enclosed blocking call as a wait."""
        clock, watch = self.clocks.current, self.clocks.watch
        watch.wait(name, self.name)
        mark = clock.begin_wait()
        try:
            yield
        finally:
            clock.end_wait(name, mark)
        watch.go_on()


def axis_of(group: dist.ProcessGroup | None, clocks: Clocks | None = None) -> Axis:
    """An axis over an existing process group, for layers used without the runtime."""
    if group is None or dist.get_world_size(group) == 1:
        return Axis(clocks=clocks or Clocks())
    return Axis(dist.get_world_size(group), dist.get_rank(group), group, clocks or Clocks())


def through_host(group: dist.ProcessGroup | None, device: torch.device) -> bool:
    """Whether what is on the device goes through the host: gloo, of ranks that share a GPU, moves host memory only.

    The group itself says what it is, for not every group is one of torch's world (lone/group.py).
    """
    return device.type == "cuda" and group is not None and group.name() == "gloo"
