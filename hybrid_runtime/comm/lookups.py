"""The two collectives of a sharded embedding: parts of a sum go to one rank, and its gradient comes back to all.

    ranks with rows   part ------\\                     /---> gradient      every one into its own rows
    the sum's rank    part ----- reduce -> x ... dx --- broadcast

Parts and gradients have communicators of their own, each first in, first out: every rank starts them in one order. No
rank waits where it starts one. gloo moves host memory only: on GPUs that share a device both go through the host.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor

from hybrid_runtime.comm.axis import Axis, through_host
from hybrid_runtime.comm.point_to_point import BufferPool, Spec
from hybrid_runtime.comm.under_way import Ledger, UnderWay


class Sums:
    """One sum per microbatch of equally shaped parts, one part from every rank of the axis, made on rank `root`.

    Args:
        root: rank of the axis.
    """

    def __init__(self, axis: Axis, root: int, is_root: bool, device: torch.device, ledger: Ledger | None) -> None:
        self._axis = axis
        self._root = root
        self._is_root = is_root
        self._host = through_host(axis.group, device)
        self._device = device
        self._ledger = ledger
        self._under_way = UnderWay(ledger)
        self._sums: dict[int, tuple[dist.Work | None, Tensor]] = {}

    def start(self, microbatch: int, part: Tensor) -> None:
        """Starts adding this rank's contiguous part, which is overwritten; on the root it becomes the sum."""
        part = part.to("cpu") if self._host else part
        group = self._axis.group
        work = None if group is None else dist.reduce(part, group_dst=self._root, group=group, async_op=True)
        if not self._is_root:
            self._under_way.count(part.nbytes)
            self._under_way.add(work, part)
            return
        if self._ledger is not None:
            self._ledger.hold(part)
        self._sums[microbatch] = work, part

    def take(self, microbatch: int, name: str) -> Tensor:
        """On the root: waits for a sum; `name` is what the wait is reported as."""
        work, part = self._sums[microbatch]
        if work is None:
            return part
        with self._axis.waiting(name):
            work.wait()
            return part.to(self._device)

    def let_go(self, microbatch: int) -> None:
        """On the root: the sum is nobody's buffer any more; whoever still uses it counts it."""
        _, part = self._sums.pop(microbatch)
        if self._ledger is not None:
            self._ledger.release(part)

    def poll(self) -> None:
        """Drops parts that have been sent."""
        self._under_way.poll()

    def finish(self) -> None:
        """Waits until all parts have been sent."""
        self._under_way.finish()


class Broadcasts:
    """One tensor after the other from rank `root` to all others of the axis.

    A rank that takes them has the next one under way while it uses one: two buffers.
    """

    def __init__(self, axis: Axis, root: int, device: torch.device, ledger: Ledger | None) -> None:
        self._axis = axis
        self._root = root
        self._host = through_host(axis.group, device)
        self._device = device
        self._under_way = UnderWay(ledger)
        self._pool = BufferPool(torch.device("cpu") if self._host else device, ledger)
        self._posted: deque[tuple[dist.Work | None, tuple[Tensor, ...]]] = deque()

    def start(self, tensor: Tensor) -> None:
        """On the root: starts sending a tensor, which must not change any more."""
        if self._axis.group is None:
            return
        tensor = tensor.detach().contiguous().to("cpu" if self._host else tensor.device)
        self._under_way.count(tensor.nbytes)
        self._under_way.add(dist.broadcast(tensor, group_src=self._root, group=self._axis.group, async_op=True), tensor)

    def take(self, spec: Spec, name: str, *, more: bool) -> tuple[Tensor, ...]:
        """On another rank: waits for the next tensor, which is the caller's until `give_back`.

        Args:
            spec: what it looks like.
            name: what the wait is reported as.
            more: another one follows in this step.
        """
        if not self._posted:
            self._post(spec)
        work, buffers = self._posted.popleft()
        with self._axis.waiting(name):
            assert work is not None
            work.wait()
        if more:
            self._post(spec)
        return buffers

    def give_back(self, buffers: tuple[Tensor, ...]) -> None:
        """The caller is done with what it took."""
        self._pool.give_back(buffers)

    def poll(self) -> None:
        """Drops what has been sent."""
        self._under_way.poll()

    def finish(self) -> None:
        """Waits until everything has been sent."""
        self._under_way.finish()

    def _post(self, spec: Spec) -> None:
        buffers = self._pool.take(spec)
        work = dist.broadcast(buffers[0], group_src=self._root, group=self._axis.group, async_op=True)
        self._posted.append((work, buffers))
