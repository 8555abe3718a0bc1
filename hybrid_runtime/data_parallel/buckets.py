"""Gradients live in a few flat buffers; `parameter.grad` is a view of one.

So zeroing, scaling, summing over tied copies and averaging over replicas are a handful of large operations, and a
backward can add into a gradient in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis

BUCKET_BYTES = 25 * 2**20


class GradientBuckets:
    """Flat gradient buffers over parameters, filled in the given order, at most `bucket_bytes` each.

    A parameter larger than a bucket gets one of its own. Parameters that appear twice (tied) are taken once.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, bucket_bytes: int = BUCKET_BYTES) -> None:
        unique = list({id(parameter): parameter for parameter in parameters if parameter.requires_grad}.values())
        self.buffers = [_flatten(bucket) for bucket in _buckets(unique, bucket_bytes)]

    def zero(self) -> None:
        """Before a step's first backward."""
        for buffer in self.buffers:
            buffer.zero_()

    def scale(self, factor: Tensor) -> None:
        """Multiplies every gradient by a scalar tensor; no synchronisation."""
        for buffer in self.buffers:
            buffer.mul_(factor)

    def sum_over(self, axis: Axis) -> None:
        """Sums every gradient over an axis (the loss is already divided by the tokens of the whole batch).

        All buckets are started before the first is waited for.
        """
        if axis.group is None:
            return
        works = [dist.all_reduce(buffer, group=axis.group, async_op=True) for buffer in self.buffers]
        with axis.waiting("all_reduce_gradients"):
            for work in works:
                assert work is not None
                work.wait()

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)


def _buckets(parameters: list[nn.Parameter], bucket_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Groups of one dtype in the given order."""
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        bucket: list[nn.Parameter] = []
        filled = 0
        for parameter in parameters:
            if parameter.dtype != dtype:
                continue
            if bucket and filled + parameter.nbytes > bucket_bytes:
                yield bucket
                bucket, filled = [], 0
            bucket.append(parameter)
            filled += parameter.nbytes
        if bucket:
            yield bucket


def _flatten(parameters: list[nn.Parameter]) -> Tensor:
    first = parameters[0]
    buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
    start = 0
    for parameter in parameters:
        parameter.grad = buffer[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return buffer
