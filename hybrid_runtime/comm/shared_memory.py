"""All-reduce through shared memory, for CPU ranks of one host: one copy in, one addition out, no helper threads.

    rank a    copy x into own slot | tell b ---- other work ---- | hear b | x += slot of b
    rank b    copy x into own slot | tell a ---- other work ---- | hear a | x += slot of a

gloo sends the same bytes through the loopback interface with helper threads that take the rank's own core: at 512 KiB
on two cores 0.9 ms of CPU time instead of 0.3 ms (benchmarks/NOTES.md). Data lies in files of /dev/shm, whose names are
gone once everybody has opened them. "Tell" and "hear" are a byte in a pipe: a wait costs no CPU time, the system calls
order the memory accesses, and a rank that dies closes its pipes, which its peers notice at once.

Two slots take turns. Reusing slot k for message k+2 is safe, because only one message is under way at a time: a peer
that has told k+1 has finished reading k.
"""

from __future__ import annotations

import os
import select
import shutil
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from hybrid_runtime.errors import RunError

SLOT_BYTES = 4 * 2**20
_MEMORY = Path("/dev/shm")
_LONGEST_POLL_MS = 2**31 - 1


class SharedMemory:
    """One rank's end. All ranks of the axis must make the same calls in the same order.

    Args:
        rank: this rank's place on the axis.
        slots: (2 * SLOT_BYTES,) uint8, every rank's two slots, in order of ranks.
        hear: by peer, where its bytes are read.
        tell: where this rank's bytes are written, one per peer.
        timeout: how long to wait for a peer.
    """

    def __init__(
        self, rank: int, slots: list[Tensor], hear: dict[int, int], tell: list[int], timeout: timedelta
    ) -> None:
        self._rank = rank
        self._slots = slots
        self._hear = hear
        self._tell = tell
        self._timeout_s = timeout.total_seconds()
        self._polls = {peer: _poll(descriptor) for peer, descriptor in hear.items()}
        self._views: dict[tuple[int, torch.dtype, int], list[Tensor]] = {}
        self._messages = 0
        self._under_way = False

    def takes(self, x: Tensor) -> bool:
        """Whether `x` can go this way: on the CPU, not larger than a slot, and no other message under way."""
        return not self._under_way and x.device.type == "cpu" and 0 < x.nbytes <= SLOT_BYTES

    def start(self, x: Tensor) -> SharedMemory:
        """Publishes the contiguous `x`; then `wait`, then `add_others`.

        Raises:
            RunError: a peer has left.
        """
        assert not self._under_way
        self._under_way = True
        self._messages += 1
        self._slots_like(x)[self._rank].copy_(x.view(-1))
        try:
            for descriptor in self._tell:
                os.write(descriptor, b".")
        except BrokenPipeError:
            raise RunError(f"a peer of tensor-parallel rank {self._rank} has left the run") from None
        return self

    def wait(self) -> None:
        """Blocks until every peer has published.

        Raises:
            RunError: a peer has left, or takes too long.
        """
        for peer, descriptor in self._hear.items():
            if not self._polls[peer].poll(min(self._timeout_s * 1000, _LONGEST_POLL_MS)):
                raise RunError(f"tensor-parallel peer {peer} sent nothing for {self._timeout_s:g} s")
            if not os.read(descriptor, 1):
                raise RunError(f"tensor-parallel peer {peer} has left the run")

    def add_others(self, x: Tensor) -> Tensor:
        """Makes `x` the sum over the ranks, added in order of ranks so that all of them get the same bits."""
        total, (first, second, *others) = x.view(-1), self._slots_like(x)
        torch.add(first, second, out=total)
        for slot in others:
            total.add_(slot)
        self._under_way = False
        return x

    def _slots_like(self, x: Tensor) -> list[Tensor]:
        """Every rank's slot of this message, as flat tensors like `x`."""
        turn = self._messages % 2
        key = (turn, x.dtype, x.numel())
        views = self._views.get(key)
        if views is None:
            start = turn * SLOT_BYTES
            views = [slots[start : start + x.nbytes].view(x.dtype) for slots in self._slots]
            self._views[key] = views
        return views


def open_shared_memory(group: dist.ProcessGroup, timeout: timedelta) -> SharedMemory | None:
    """The shared memory of a gloo group's ranks; None on all of them where they cannot all open it (other hosts)."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mine = _new_folder() if rank == 0 else None
    folders: list[str | None] = [None] * size
    dist.all_gather_object(folders, mine, group=group)
    with ExitStack() as undo:
        if mine is not None:
            undo.callback(shutil.rmtree, mine, ignore_errors=True)
        if folders[0] is None:
            return None
        folder = Path(folders[0])
        hear = _make_own(folder, rank, size)
        if not _all_succeeded(hear is not None, group):
            return None
        tell, slots = _open_others(folder, rank, size)
        if not _all_succeeded(len(slots) == size, group):
            return None
    assert hear is not None
    return SharedMemory(rank, slots, hear, tell, timeout)


def _new_folder() -> str | None:
    try:
        return tempfile.mkdtemp(prefix="hybrid_runtime-", dir=_MEMORY)
    except OSError:
        return None  # no shared memory here: gloo does it


def _make_own(folder: Path, rank: int, size: int) -> dict[int, int] | None:
    """Makes this rank's slots, really allocated, and the pipes it reads; None where that fails."""
    hear: dict[int, int] = {}
    try:
        with open(folder / f"slots{rank}", "xb") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * SLOT_BYTES)  # a full /dev/shm must fail here, not at a write
        for peer in _others(rank, size):
            pipe = folder / f"{peer}to{rank}"
            os.mkfifo(pipe)
            hear[peer] = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # blocking, it would wait for the writer
    except OSError:
        return None
    return hear


def _open_others(folder: Path, rank: int, size: int) -> tuple[list[int], list[Tensor]]:
    """The pipes this rank writes and everybody's slots; fewer slots than ranks where that fails."""
    slots: list[Tensor] = []
    try:
        tell = [os.open(folder / f"{rank}to{peer}", os.O_WRONLY) for peer in _others(rank, size)]
        for peer in range(size):
            file = str(folder / f"slots{peer}")
            slots.append(torch.from_file(file, shared=True, size=2 * SLOT_BYTES, dtype=torch.uint8))
    except (OSError, RuntimeError):
        return [], []
    return tell, slots


def _others(rank: int, size: int) -> list[int]:
    return [peer for peer in range(size) if peer != rank]


def _all_succeeded(succeeded: bool, group: dist.ProcessGroup) -> bool:
    flag = torch.tensor(int(succeeded))
    dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=group)
    return bool(flag.item())


def _poll(descriptor: int) -> select.poll:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return poll
