"""Messages between two ranks, of which each end keeps its own order: integers of the host, and carries of items.

Integers (descriptors, tokens, sampled ids) go over gloo whatever the device is, each kind by a tag of its own. Carries
go over the pipeline's edges. The first carry of an edge is preceded by a header (comm/point_to_point.py) that says how
many tensors there are and what they look like; all later ones must look the same but in dim 1, the item's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.groups import Edge, Groups
from hybrid_runtime.comm.point_to_point import HEADER_LENGTH, Spec, decode_spec, encode_spec, spec_of, staging_of
from hybrid_runtime.comm.under_way import Ledger, UnderWay
from hybrid_runtime.errors import RunError
from hybrid_runtime.models.unit import Carry

UNSENT: Final = -2  # what stands in a message before it has arrived: no count, no token id, and not NOT_FINITE


class Receiving(NamedTuple):
    """Integers on their way to this rank."""

    work: dist.Work
    numbers: Tensor


class Numbers:
    """Messages of integers between two ranks of the control group, one kind in one direction.

    Args:
        rank: the other end, a global rank.
    """

    def __init__(self, groups: Groups, rank: int, tag: int) -> None:
        self._group, self._rank, self._tag = groups.control, rank, tag
        place = groups.mesh.place(rank)
        same_stage = place.pp == groups.place.pp
        self._axis = Axis(clocks=groups.clocks, name="tp" if same_stage else f"pp={place.pp}")
        self._under_way = UnderWay(None)

    def send(self, numbers: Sequence[int], at_most: int) -> None:
        """Starts sending; of earlier messages, at most so many may still be under way."""
        tensor = torch.tensor(numbers, dtype=torch.int64)
        work = dist.isend(tensor, group=self._group, tag=self._tag, group_dst=self._rank)
        self._under_way.add(work, tensor)
        self._under_way.keep_at_most(at_most)

    def finish(self) -> None:
        """Waits until everything has been sent."""
        with self._axis.clocks.watching("last sends", self._axis.name):
            self._under_way.finish()

    def receive(self, length: int) -> Receiving:
        """Starts receiving at most so many integers."""
        numbers = torch.full((length,), UNSENT, dtype=torch.int64)
        work = dist.irecv(numbers, group=self._group, tag=self._tag, group_src=self._rank)
        assert work is not None
        return Receiving(work, numbers)

    def waiting(self, name: str) -> AbstractContextManager[None]:
        """Reports what is enclosed as a wait for the other end; `name` is what is waited for."""
        return self._axis.waiting(name)

    def take(self, receiving: Receiving, name: str) -> list[int]:
        """Waits for what is received; `name` is what is waited for."""
        with self.waiting(name):
            receiving.work.wait()
        numbers: list[int] = receiving.numbers.tolist()
        return numbers


class CarryOut:
    """What a stage hands on to the next one."""

    def __init__(self, edge: Edge, groups: Groups, ledger: Ledger | None) -> None:
        self._edge = edge
        self._clocks, self._to = groups.clocks, f"pp={edge.target_pp}"
        self._staging = staging_of(edge, groups.device)
        self._under_way = UnderWay(ledger)
        self._spec: Spec | None = None

    def send(self, carry: Carry, at_most: int) -> None:
        """Starts sending; of earlier carries, at most so many may still be under way.

        Raises:
            RunError: it looks different from the first one, or is not one row of tokens.
        """
        spec = spec_of(carry)
        if self._spec is None:
            self._spec = spec
            self._start(encode_spec(spec).to(self._staging or carry[0].device))
        if _with_tokens(spec, 0) != _with_tokens(self._spec, 0):
            raise RunError("a stage hands on another carry than its first one; all items must look alike but in length")
        self._under_way.count(sum(tensor.nbytes for tensor in carry))
        for tensor in carry:
            self._start(tensor.contiguous().to(self._staging or tensor.device))
        self._under_way.keep_at_most(at_most * len(carry))

    def _start(self, tensor: Tensor) -> None:
        self._under_way.add(dist.isend(tensor, group=self._edge.group, group_dst=self._edge.peer), tensor)

    def finish(self) -> None:
        """Waits until everything has been sent."""
        with self._clocks.watching("last sends", self._to):
            self._under_way.finish()


class CarryIn:
    """What a stage is handed by the one before it."""

    def __init__(self, edge: Edge, groups: Groups, ledger: Ledger | None) -> None:
        self._edge = edge
        self._device = groups.device
        self._staging = staging_of(edge, groups.device)
        self._axis = Axis(clocks=groups.clocks, name=f"pp={edge.source_pp}")
        self._ledger = ledger
        self._spec: Spec | None = None
        self._held: Carry = ()

    def take(self, tokens: int, name: str) -> Carry:
        """Waits for the carry of so many tokens; `name` is what is waited for."""
        with self._axis.waiting(name):
            if self._spec is None:
                header = torch.empty(HEADER_LENGTH, dtype=torch.int64, device=self._staging or self._device)
                self._receive(header).wait()
                self._spec = decode_spec(header)
            carry = self._buffers(_with_tokens(self._spec, tokens))
            for work in [self._receive(tensor) for tensor in carry]:
                work.wait()
            return carry if self._staging is None else tuple(tensor.to(self._device) for tensor in carry)

    def _buffers(self, spec: Spec) -> Carry:
        """New ones, which count until the next."""
        carry = tuple(torch.empty(shape, dtype=dtype, device=self._staging or self._device) for shape, dtype in spec)
        if self._ledger is not None:
            for tensor in self._held:
                self._ledger.release(tensor)
            for tensor in carry:
                self._ledger.hold(tensor)
            self._held = carry
        return carry

    def _receive(self, tensor: Tensor) -> dist.Work:
        work = dist.irecv(tensor, group=self._edge.group, group_src=self._edge.peer)
        assert work is not None
        return work


def _with_tokens(spec: Spec, tokens: int) -> Spec:
    """The same for an item of so many tokens."""
    return tuple(tensor._replace(shape=(tensor.shape[0], tokens, *tensor.shape[2:])) for tensor in spec)
