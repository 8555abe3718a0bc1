"""Messages of an item: its descriptor, what stages pass on, and what was sampled.

    rank 0 --descriptor, tokens--> the other tensor ranks of its stage
    each rank --descriptor--> its tensor peer of the next stage --descriptor--> ...       sent on before it computes
    each rank --carry--> its tensor peer of the next stage                                after it has computed
    last stage's first tensor rank --sampled ids--> rank 0                                straight

Descriptors, tokens and ids are numbers of the host: they go over gloo whatever the device is, by tags, each kind of
message in its own order. Carries go over the pipeline's edges. Nothing that is sent is waited for as long as no more
items are under way than there may be: what is older than that has been received, or its answer would not be back.

The first carry of an edge is preceded by a header (comm/point_to_point.py) that says how many tensors there are and
what they look like; their dim 1 is always the item's tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.groups import Edge, Groups
from hybrid_runtime.comm.point_to_point import (
    HEADER_LENGTH,
    Spec,
    decode_spec,
    encode_spec,
    spec_of,
    staging_of,
)
from hybrid_runtime.comm.under_way import Ledger, UnderWay
from hybrid_runtime.errors import RunError
from hybrid_runtime.inference.descriptor import decode, descriptor_length, encode, num_tokens
from hybrid_runtime.models.unit import Carry
from hybrid_runtime.serving.requests import Item

_DESCRIPTOR, _TOKENS, _ANSWER = 1, 2, 3  # tags
_UNANSWERED: Final = -2  # no token id, and not NOT_FINITE


class _Receiving(NamedTuple):
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

    def receive(self, length: int) -> _Receiving:
        """Starts receiving at most so many integers."""
        numbers = torch.full((length,), _UNANSWERED, dtype=torch.int64)
        work = dist.irecv(numbers, group=self._group, tag=self._tag, group_src=self._rank)
        assert work is not None
        return _Receiving(work, numbers)

    def take(self, receiving: _Receiving, name: str) -> list[int]:
        """Waits for what is received; `name` is what is waited for."""
        with self._axis.waiting(name):
            receiving.work.wait()
        numbers: list[int] = receiving.numbers.tolist()
        return numbers


class CarryOut:
    """What a stage hands on to the next one."""

    def __init__(self, edge: Edge, device: torch.device, ledger: Ledger | None) -> None:
        self._edge = edge
        self._staging = staging_of(edge, device)
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


class Wire:
    """All messages of one rank.

    Args:
        microbatch_size: most rows of an item.
        most_in_flight: items that may be under way.
        ledger: counts carries.
    """

    def __init__(self, groups: Groups, microbatch_size: int, most_in_flight: int, ledger: Ledger | None = None) -> None:
        mesh, place = groups.mesh, groups.place
        last = mesh.pp_degree - 1
        self._most = most_in_flight
        self._length, self._rows = descriptor_length(microbatch_size), microbatch_size
        self.is_first, self.is_last = place.pp == 0, place.pp == last
        self._next: list[Numbers] = []
        self._tokens: list[Numbers] = []
        if not self.is_last:
            self._next.append(Numbers(groups, mesh.rank(dp=0, pp=place.pp + 1, tp=place.tp), _DESCRIPTOR))
        if place.rank == 0:
            peers = range(1, mesh.tp_degree)
            self._next += [Numbers(groups, mesh.rank(dp=0, pp=0, tp=tp), _DESCRIPTOR) for tp in peers]
            self._tokens = [Numbers(groups, mesh.rank(dp=0, pp=0, tp=tp), _TOKENS) for tp in peers]
        else:
            source = 0 if self.is_first else mesh.rank(dp=0, pp=place.pp - 1, tp=place.tp)
            self._descriptors = Numbers(groups, source, _DESCRIPTOR)
            self._own_tokens = Numbers(groups, source, _TOKENS)
        self._announced: _Receiving | None = None
        self._answers: Numbers | None = None
        if not self.is_last and place.rank == 0:
            self._answers = Numbers(groups, mesh.rank(dp=0, pp=last, tp=0), _ANSWER)
        elif self.is_last and place.tp == 0 and place.rank > 0:
            self._answers = Numbers(groups, 0, _ANSWER)
        self._expected: deque[_Receiving] = deque()
        edge_in, edge_out = groups.edges.get((place.pp - 1, place.pp)), groups.edges.get((place.pp, place.pp + 1))
        self._carry_in = None if edge_in is None else CarryIn(edge_in, groups, ledger)
        self._carry_out = None if edge_out is None else CarryOut(edge_out, groups.device, ledger)

    def announce(self, item: Item | None) -> None:
        """Tells the ranks behind this one what comes; None: nothing any more."""
        if not self._next:
            return
        numbers = encode(item)
        numbers += [0] * (self._length - len(numbers))
        for link in self._next:
            link.send(numbers, self._most)
        if item is not None:
            for link in self._tokens:
                link.send(item.tokens, self._most)

    def next_item(self) -> Item | None:
        """Waits for what is announced to this rank; with tokens on the first stage. None: nothing any more."""
        receiving = self._announced or self._descriptors.receive(self._length)
        numbers = self._descriptors.take(receiving, "descriptor")
        self._announced = None
        tokens: list[int] = []
        if num_tokens(numbers):
            self._announced = self._descriptors.receive(self._length)  # posted early, the next one comes at once
            if self.is_first:
                tokens = self._own_tokens.take(self._own_tokens.receive(num_tokens(numbers)), "tokens")
        return decode(numbers, tokens)

    def take_carry(self, tokens: int, name: str) -> Carry:
        """Waits for the carry of an item of so many tokens; nothing on the first stage."""
        return () if self._carry_in is None else self._carry_in.take(tokens, name)

    def send_carry(self, carry: Carry) -> None:
        """Hands it on."""
        assert self._carry_out is not None
        self._carry_out.send(carry, self._most)

    def answer(self, tokens: Sequence[int]) -> None:
        """From the last stage to rank 0; nothing from its other tensor ranks."""
        if self._answers is not None:
            self._answers.send([*tokens, *[0] * (self._rows - len(tokens))], self._most)

    def expect_answer(self) -> None:
        """Rank 0 has sent an item off."""
        assert self._answers is not None
        self._expected.append(self._answers.receive(self._rows))

    @property
    def is_answer_there(self) -> bool:
        """Whether the oldest answer seems to have arrived: a hint, for gloo does not say."""
        return bool(self._expected[0].numbers[0] != _UNANSWERED)

    def take_answer(self, wanted: int) -> list[int]:
        """Waits for the oldest answer, of so many tokens."""
        assert self._answers is not None
        return self._answers.take(self._expected.popleft(), "answer")[:wanted]

    def finish(self) -> None:
        """Waits until everything has been sent."""
        for link in (*self._next, *self._tokens):
            link.finish()
        if self._carry_out is not None:
            self._carry_out.finish()
        if self._answers is not None:
            self._answers.finish()


def _with_tokens(spec: Spec, tokens: int) -> Spec:
    """The same for an item of so many tokens."""
    return tuple(tensor._replace(shape=(tensor.shape[0], tokens, *tensor.shape[2:])) for tensor in spec)
