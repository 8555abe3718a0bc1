"""Process groups whose other members are not there: nothing waits, everything is counted.

    all-reduce, reduce, own broadcast   the tensor stays as it is
    all-gather                          every member's part is a copy of the own one
    reduce-scatter                      the own part of what was given
    either of them in place             the tensor stays as it is
    send                                counted and dropped
    receive, another's broadcast        random values of unit variance, where a weight does not have its own already:
                                        zeros and subnormals would change time and power

A result that must be written is written when it is waited for, where a real rank waits too: what that costs is no
compute of the rank. Only the methods that this runtime calls exist; any other raises in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import thread_time_ns
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Call(NamedTuple):
    """One call: what, among how many ranks, and bytes of the whole tensor."""

    kind: str
    ranks: int
    num_bytes: int


class Traffic:
    """What a lone rank would have told others.

    Attributes:
        calls: in order.
        stub_ns: CPU time of the thread that went into results that another rank would have sent.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.stub_ns = 0

    def count(self, kind: str, ranks: int, num_bytes: int) -> None:
        self.calls.append(Call(kind, ranks, num_bytes))

    def stand_in(self, write: Callable[[], object]) -> None:
        """Does what a peer, or a network card, would have done."""
        start_ns = thread_time_ns()
        write()
        self.stub_ns += thread_time_ns() - start_ns


class _Done(dist.Work):
    """A handle that was complete from the start."""

    def __init__(self, finish: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._finish = finish

    def wait(self, timeout: Any = None) -> bool:
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()
        return True

    def is_completed(self) -> bool:
        return True


class LoneGroup(dist.ProcessGroup):
    """One member of a group of `size`, alone."""

    def __init__(self, rank: int, size: int, traffic: Traffic) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg, arg-type]  # its second overload, which the stubs lack
        self._size = size
        self._rank = rank
        self._traffic = traffic

    def name(self) -> str:
        """Not "gloo": nothing leaves the device, so a rank alone on a GPU runs the kernels of a NCCL rank."""
        return "lone"

    def allreduce(self, tensors: Sequence[Tensor], opts: Any = None) -> dist.Work:  # type: ignore[override]
        return self._counted("all_reduce", tensors[0])

    def broadcast(self, tensors: Sequence[Tensor], opts: Any = None) -> dist.Work:  # type: ignore[override]
        buffer = tensors[0]
        fills = opts.rootRank != self._rank and not buffer.requires_grad  # a weight has been drawn already
        return self._counted("broadcast", buffer, (lambda: _invent(buffer)) if fills else None)

    def reduce(self, tensors: Sequence[Tensor], opts: Any = None) -> dist.Work:  # type: ignore[override]
        return self._counted("reduce", tensors[0])

    def barrier(self, opts: Any = None) -> dist.Work:
        return _Done()

    def allgather(  # type: ignore[override]
        self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None
    ) -> dist.Work:
        for part in outputs[0]:
            part.copy_(inputs[0])
        return _Done()

    def all_gather_single(self, output: Tensor, own: Tensor, opts: Any = None) -> dist.Work:
        if _in_place(output, own):
            return self._counted("all_gather", output)
        parts = output.view(self._size, -1)
        return self._counted("all_gather", output, lambda: parts.copy_(own.view(1, -1)))

    def reduce_scatter_single(self, output: Tensor, given: Tensor, opts: Any = None) -> dist.Work:
        if _in_place(output, given):
            return self._counted("reduce_scatter", given)
        own = given.view(self._size, -1)[self._rank]
        return self._counted("reduce_scatter", given, lambda: output.view(-1).copy_(own))

    _allgather_base = all_gather_single  # type: ignore[assignment]  # before torch 2.13
    _reduce_scatter_base = reduce_scatter_single  # type: ignore[assignment]

    def send(self, tensors: Sequence[Tensor], target: int, tag: int) -> dist.Work:
        return self._counted("send", tensors[0])

    def recv(self, tensors: Sequence[Tensor], source: int, tag: int) -> dist.Work:
        buffer = tensors[0]
        return self._counted("receive", buffer, lambda: _invent(buffer))

    def _counted(self, kind: str, tensor: Tensor, write: Callable[[], object] | None = None) -> dist.Work:
        self._traffic.count(kind, self._size, tensor.nbytes)
        return _Done(None if write is None else lambda: self._traffic.stand_in(write))


def _in_place(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _invent(buffer: Tensor) -> None:
    if buffer.is_floating_point():
        buffer.normal_()
    else:
        buffer.zero_()


def unit_values(num_bytes: int, dtype: torch.dtype) -> Tensor:
    """(num_bytes,) uint8 that hold random values of `dtype` with unit variance."""
    size = torch.empty((), dtype=dtype).element_size()
    return torch.empty(num_bytes // size, dtype=dtype).normal_().view(torch.uint8)
