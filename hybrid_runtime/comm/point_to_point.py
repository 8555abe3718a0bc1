"""Stage-to-stage messages: a message is a tuple of tensors, an edge is a first-in-first-out queue of messages.

Receives are *announced* early (where the lowered schedule puts them) and *taken* where the tensors are needed. Their
buffers come from a pool and go back to it after the microbatch's backward, so a stage holds as many as the schedule
keeps in flight and not one per microbatch. Sent tensors are dropped as soon as the send has completed.

Shapes travel once. The first activation message of a stage is preceded by a small header (how many tensors, their
shapes and types); afterwards every message must look the same. Gradients need none: they look like what was sent
forward. A receive announced before its shape is known is posted as soon as it is known, and those behind it wait, so
the order on an edge is always the sender's.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hybrid_runtime.comm.axis import Clocks, through_host
from hybrid_runtime.comm.groups import Edge
from hybrid_runtime.comm.under_way import Ledger, UnderWay
from hybrid_runtime.errors import RunError
from hybrid_runtime.schedule.actions import Action, Kind

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32)
_MAX_DIMS = 6
_MAX_TENSORS = 8
HEADER_LENGTH = 1 + _MAX_TENSORS * (2 + _MAX_DIMS)


class TensorSpec(NamedTuple):
    """Shape and type of one tensor of a message."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Spec = tuple[TensorSpec, ...]


def spec_of(tensors: Sequence[Tensor]) -> Spec:
    return tuple(TensorSpec(tuple(tensor.shape), tensor.dtype) for tensor in tensors)


class BufferPool:
    """Receive buffers by spec, reused; `allocated` counts how many messages' worth were ever created."""

    def __init__(self, device: torch.device, ledger: Ledger | None) -> None:
        self._device = device
        self._ledger = ledger
        self._free: dict[Spec, list[tuple[Tensor, ...]]] = defaultdict(list)
        self.allocated = 0

    def take(self, spec: Spec) -> tuple[Tensor, ...]:
        if self._free[spec]:
            return self._free[spec].pop()
        self.allocated += 1
        buffers = tuple(torch.empty(shape, dtype=dtype, device=self._device) for shape, dtype in spec)
        for buffer in buffers:
            if self._ledger is not None:
                self._ledger.hold(buffer)
        return buffers

    def give_back(self, buffers: tuple[Tensor, ...]) -> None:
        self._free[spec_of(buffers)].append(buffers)

    def abandon(self, buffers: tuple[Tensor, ...]) -> None:
        for buffer in buffers:
            if self._ledger is not None:
                self._ledger.release(buffer)


class Sender:
    """The sending end of a directed edge. Nothing blocks until `finish`."""

    def __init__(self, edge: Edge, device: torch.device, ledger: Ledger | None = None) -> None:
        self._edge = edge
        self._staging = staging_of(edge, device)
        self._specs: dict[tuple[int, Kind], Spec] = {}
        self._under_way = UnderWay(ledger)
        self._sequence = 0

    def send(self, action: Action, tensors: Sequence[Tensor]) -> None:
        """Starts sending one message; the tensors are kept alive here until they are sent.

        Raises:
            RunError: the message looks different from the stage's first one.
        """
        key, spec = (action.stage, action.kind), spec_of(tensors)
        if key not in self._specs:
            self._specs[key] = spec
            if action.kind is Kind.SEND_F:
                self._start(encode_spec(spec).to(self._staging or tensors[0].device))
        elif spec != self._specs[key]:
            raise RunError(
                f"{action}: stage {action.stage} sends {_words(spec)}, but its first message was "
                f"{_words(self._specs[key])}; every microbatch must have the same shape"
            )
        self._under_way.count(sum(tensor.nbytes for tensor in tensors))
        for tensor in tensors:
            self._start(tensor.detach().contiguous().to(self._staging or tensor.device))

    def _start(self, tensor: Tensor) -> None:
        work = dist.isend(tensor, group=self._edge.group, tag=self._sequence, group_dst=self._edge.peer)
        assert work is not None
        self._sequence += 1
        self._under_way.add(work, tensor)

    def poll(self) -> None:
        """Drops what has been sent; cheap, called between actions."""
        self._under_way.poll()

    def finish(self) -> None:
        """Waits until everything has been sent (every handle is waited on)."""
        self._under_way.finish()


class _Posted(NamedTuple):
    works: list[dist.Work]
    buffers: tuple[Tensor, ...]


class Receiver:
    """The receiving end of a directed edge."""

    def __init__(self, edge: Edge, device: torch.device, clocks: Clocks, ledger: Ledger | None = None) -> None:
        self._edge = edge
        self._device = device
        self._staging = staging_of(edge, device)
        self._clocks = clocks
        self._from = f"pp={edge.source_pp}"
        self.pool = BufferPool(self._staging or device, ledger)
        self._specs: dict[tuple[int, Kind], Spec] = {}
        self._announced: deque[Action] = deque()
        self._posted: dict[Action, _Posted] = {}
        self._header: _Posted | None = None
        self._sequence = 0

    def know(self, stage: int, kind: Kind, spec: Spec) -> None:
        """The shape of a stage's messages is known (gradients look like what was sent forward)."""
        if self._specs.setdefault((stage, kind), spec) is spec:
            self._post()

    def announce(self, action: Action) -> None:
        """Posts the receive of one message, or queues it until its shape is known."""
        self._announced.append(action)
        self._post()

    def take(self, action: Action) -> tuple[Tensor, ...]:
        """Waits for an announced message; the buffers are the caller's until `give_back`."""
        clock, watch, name = self._clocks.current, self._clocks.watch, str(action)
        watch.wait(name, self._from)
        mark = clock.begin_wait()
        while action not in self._posted:
            self._read_header()
        works, buffers = self._posted.pop(action)
        for work in works:
            work.wait()
        if self._staging is not None:
            arrived = tuple(buffer.to(self._device) for buffer in buffers)
            self.pool.give_back(buffers)
            buffers = arrived
        clock.end_wait(name, mark)
        watch.go_on()
        return buffers

    def give_back(self, buffers: tuple[Tensor, ...]) -> None:
        """The microbatch is done with these buffers."""
        if self._staging is None:
            self.pool.give_back(buffers)

    def abandon(self, buffers: tuple[Tensor, ...]) -> None:
        """A unit passed one of these buffers on: they are ordinary tensors now and never return to the pool."""
        if self._staging is None:
            self.pool.abandon(buffers)

    def _post(self) -> None:
        while self._announced and self._header is None:
            action = self._announced[0]
            spec = self._specs.get((action.stage, action.kind))
            if spec is not None:
                self._announced.popleft()
                buffers = self.pool.take(spec)
                self._posted[action] = _Posted([self._receive(buffer) for buffer in buffers], buffers)
            elif action.kind is Kind.RECV_F:
                header = torch.zeros(HEADER_LENGTH, dtype=torch.int64, device=self._staging or self._device)
                self._header = _Posted([self._receive(header)], (header,))
            else:
                return

    def _read_header(self) -> None:
        assert self._header is not None, "a receive was taken that nobody announced"
        works, (header,) = self._header
        for work in works:
            work.wait()
        self._header = None
        action = self._announced[0]
        self._specs[action.stage, action.kind] = decode_spec(header)
        self._post()

    def _receive(self, buffer: Tensor) -> dist.Work:
        work = dist.irecv(buffer, group=self._edge.group, tag=self._sequence, group_src=self._edge.peer)
        assert work is not None
        self._sequence += 1
        return work


def staging_of(edge: Edge, device: torch.device) -> torch.device | None:
    """Where messages are on their way, if not on the device."""
    return torch.device("cpu") if through_host(edge.group, device) else None


def encode_spec(spec: Spec) -> Tensor:
    """(HEADER_LENGTH,) int64: how many tensors, their shapes and types.

    Raises:
        RunError: a carry of more tensors or dims than a header can say, or of another type.
    """
    if len(spec) > _MAX_TENSORS or any(len(tensor.shape) > _MAX_DIMS for tensor in spec):
        raise RunError(f"a carry holds at most {_MAX_TENSORS} tensors of {_MAX_DIMS} dims, not {_words(spec)}")
    numbers = [len(spec)]
    for shape, dtype in spec:
        if dtype not in _DTYPES:
            raise RunError(f"a carry of {dtype} cannot be sent between stages; use one of {_DTYPES}")
        numbers += [_DTYPES.index(dtype), len(shape), *shape, *[0] * (_MAX_DIMS - len(shape))]
    return torch.tensor(numbers + [0] * (HEADER_LENGTH - len(numbers)), dtype=torch.int64)


def decode_spec(header: Tensor) -> Spec:
    """What `encode_spec` encoded."""
    numbers = header.tolist()
    rows = [numbers[1 + k * (2 + _MAX_DIMS) :][: 2 + _MAX_DIMS] for k in range(numbers[0])]
    return tuple(TensorSpec(tuple(row[2 : 2 + row[1]]), _DTYPES[row[0]]) for row in rows)


def _words(spec: Spec) -> str:
    return " and ".join(f"{tuple(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype in spec) or "nothing"
