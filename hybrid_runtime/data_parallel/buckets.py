"""Parameters and their gradients live in a few flat buffers; `parameter` and `parameter.grad` are views of them.

    values      | w w w w w w w w w | b b b | 0 |     weights that decay, those that do not, padding
    gradients   | . . . . . . . . . | . . . | 0 |
    sharded     |   rank 0   |    rank 1    |         equal slices: a rank updates its own (Rajbhandari et al. 2020,
                                                      "ZeRO", stage 1)

So zeroing, scaling, summing over tied copies and over replicas, and the update are a handful of large operations, and a
backward can add into a gradient in place. Gradients of bfloat16 parameters may be float32, so that neither a microbatch
nor a replica is lost beside the sum of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import Pending, start_all_reduce, start_gather_slices, start_sum_slices
from hybrid_runtime.tensor_parallel.gradients import gradient_dtype

BUCKET_BYTES = 25 * 2**20
SLICE_MULTIPLE = 16  # elements: slices begin where vector instructions and aligned loads of a GPU like to


class Member(NamedTuple):
    """A parameter and where it begins in its bucket."""

    parameter: nn.Parameter
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.parameter.numel()


class Bucket:
    """Parameters of one dtype and their gradients, of one dtype too, whole in two flat buffers.

    Args:
        parameters: those that decay first.
        stage: after whose last backward all gradients are there; None where they must still be summed otherwise.
        axis: the replicas.
        sharded: every replica updates its own slice only.

    Attributes:
        values, gradients: flat, of equal length; a multiple of the replicas' number where sharded.
        own: first and last + 1 element of this replica's slice, padding left out; everything where not sharded.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], stage: int | None, axis: Axis, *, sharded: bool) -> None:
        self.stage = stage
        self._axis = axis
        self._sharded = sharded and axis.size > 1
        shards, rank = (axis.size, axis.rank) if self._sharded else (1, 0)
        used = sum(parameter.numel() for parameter in parameters)
        length = used if shards == 1 else -(-used // (shards * SLICE_MULTIPLE)) * SLICE_MULTIPLE
        self.own = (min(used, rank * length), min(used, (rank + 1) * length))
        first = parameters[0]
        self.values, self.gradients = (
            torch.zeros(length * shards, dtype=dtype, device=first.device)
            for dtype in (first.dtype, gradient_dtype(first))
        )
        self.members: list[Member] = []
        start = 0
        for parameter in parameters:
            self.members.append(Member(parameter, start))
            self._take(self.members[-1])
            start += parameter.numel()

    def _take(self, member: Member) -> None:
        parameter, place = member.parameter, slice(member.start, member.stop)
        parameter.data = self.values[place].view_as(parameter).copy_(parameter.detach())
        parameter.grad = self.gradients[place].view_as(parameter)

    @property
    def is_sharded(self) -> bool:
        return self._sharded

    def own_part(self, member: Member) -> tuple[int, int]:
        """First and last + 1 element of a parameter, flattened, that this replica updates; equal for none."""
        start = max(member.start, self.own[0])
        stop = max(start, min(member.stop, self.own[1]))
        return start - member.start, stop - member.start

    def runs(self) -> Iterator[tuple[bool, int, int]]:
        """Whether they decay, and first and last + 1 element: of each part of the own slice that is not empty."""
        matrices = sum(member.parameter.numel() for member in self.members if decays(member.parameter))
        start, stop = self.own
        for decay, first, last in ((True, start, min(stop, matrices)), (False, max(start, matrices), stop)):
            if first < last:
                yield decay, first, last

    def start_sum(self) -> Pending:
        """Starts summing the gradients over the replicas: all of them, or each replica's slice where sharded."""
        if self._sharded:
            return start_sum_slices(self.gradients, self._axis, "reduce_scatter_gradients")
        return start_all_reduce(self.gradients, self._axis, name="all_reduce_gradients")

    def start_gather(self) -> Pending | None:
        """Starts telling the other replicas the own slice of the parameters; None where all have everything."""
        return start_gather_slices(self.values, self._axis, "all_gather_parameters") if self._sharded else None

    def start_gather_gradients(self) -> Pending | None:
        """The same of what stands where the gradients are."""
        return start_gather_slices(self.gradients, self._axis, "all_gather_masters") if self._sharded else None


def decays(parameter: nn.Parameter) -> bool:
    """Matrices decay, vectors (norms, biases) do not."""
    return parameter.dim() >= 2


class GradientBuckets:
    """Flat buffers over parameters and their gradients, filled in the given order, at most `bucket_bytes` each.

    A parameter larger than a bucket gets one of its own. Parameters that appear twice (tied) are taken once, frozen
    ones not at all.

    Args:
        axis: the replicas, over which gradients are summed.
        sharded: every replica updates its own slice of every bucket, and has the optimizer's state of no other.
        stage_of: after the last backward of which stage a gradient is whole; None for "not before `finish`".
        alone: parameters whose buckets hold nothing else: copies of one weight on several ranks are then laid out, and
            so summed and rounded, alike.
        wide: gradients of parameters narrower than float32 are float32.
        bucket_bytes: of gradients.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        axis: Axis | None = None,
        *,
        sharded: bool = False,
        stage_of: Callable[[nn.Parameter], int | None] = lambda _: None,
        alone: Iterable[nn.Parameter] = (),
        wide: bool = False,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._axis = axis or Axis()
        lonely = {id(parameter) for parameter in alone}

        def key(parameter: nn.Parameter) -> Hashable:
            return parameter.dtype, stage_of(parameter), id(parameter) if id(parameter) in lonely else None

        unique = list({id(parameter): parameter for parameter in parameters if parameter.requires_grad}.values())
        for parameter in unique:
            parameter.grad = None  # of another type, perhaps
            parameter.grad_dtype = torch.promote_types(parameter.dtype, torch.float32) if wide else parameter.dtype
        self.buckets = [
            Bucket(bucket, stage_of(bucket[0]), self._axis, sharded=sharded)
            for bucket in _buckets(unique, key, bucket_bytes)
        ]
        self._works: dict[int, Pending] = {}

    def zero(self) -> None:
        """Before a step's first backward."""
        for bucket in self.buckets:
            bucket.gradients.zero_()

    def scale(self, factor: Tensor) -> None:
        """Multiplies every gradient that this replica updates with by a scalar tensor; no synchronisation."""
        for bucket in self.buckets:
            start, stop = bucket.own
            bucket.gradients[start:stop].mul_(factor)

    def add_to_one(self, number: Tensor) -> None:
        """Adds a scalar tensor to one element of a gradient whose sum is not under way yet; to none if all are."""
        for place, bucket in enumerate(self.buckets):
            if place not in self._works:
                bucket.gradients[:1].add_(number.to(bucket.gradients.dtype))
                return

    def start_stage(self, stage: int) -> None:
        """A stage's gradients are there: starts summing those that need nothing else first."""
        self._start(number for number, bucket in enumerate(self.buckets) if bucket.stage == stage)

    def finish(self) -> None:
        """Sums every gradient over the replicas (the loss is already divided by the tokens of the whole batch).

        What is not under way yet is started before anything is waited for. Where buckets are sharded, only the own
        slices hold sums afterwards.
        """
        if self._axis.group is None:
            return
        self._start(range(len(self.buckets)))
        for work in self._works.values():
            work.wait()
        self._works.clear()

    def _start(self, numbers: Iterable[int]) -> None:
        if self._axis.group is not None:
            for number in numbers:
                if number not in self._works:
                    self._works[number] = self.buckets[number].start_sum()

    @property
    def num_bytes(self) -> int:
        """Of all gradients, padding included."""
        return sum(bucket.gradients.nbytes for bucket in self.buckets)


def _buckets(
    parameters: list[nn.Parameter], key: Callable[[nn.Parameter], Hashable], bucket_bytes: int
) -> Iterator[list[nn.Parameter]]:
    """Groups of one key in the given order, matrices before vectors."""
    groups: dict[Hashable, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(key(parameter), []).append(parameter)
    for group in groups.values():
        bucket: list[nn.Parameter] = []
        filled = 0
        for parameter in sorted(group, key=lambda parameter: not decays(parameter)):
            num_bytes = parameter.numel() * gradient_dtype(parameter).itemsize
            if bucket and filled + num_bytes > bucket_bytes:
                yield bucket
                bucket, filled = [], 0
            bucket.append(parameter)
            filled += num_bytes
        if bucket:
            yield bucket
