"""Gradients live in a few flat buffers; `parameter.grad` is a view of one.

So zeroing, scaling, summing over tied copies and averaging over replicas are a handful of large operations, and a
backward can add into a gradient in place. Gradients of bfloat16 parameters may be float32, so that neither a microbatch
nor a replica is lost beside the sum of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.tensor_parallel.gradients import gradient_dtype

BUCKET_BYTES = 25 * 2**20


class GradientBuckets:
    """Flat gradient buffers over parameters, filled in the given order, at most `bucket_bytes` each.

    A parameter larger than a bucket gets one of its own. Parameters that appear twice (tied) are taken once.

    Args:
        wide: gradients of parameters narrower than float32 are float32.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, wide: bool = False, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        unique = list({id(parameter): parameter for parameter in parameters if parameter.requires_grad}.values())
        for parameter in unique:
            parameter.grad = None  # of another type, perhaps
            parameter.grad_dtype = torch.promote_types(parameter.dtype, torch.float32) if wide else parameter.dtype
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
    """Groups of one type of gradient in the given order."""
    for dtype in dict.fromkeys(map(gradient_dtype, parameters)):
        bucket: list[nn.Parameter] = []
        filled = 0
        for parameter in parameters:
            if gradient_dtype(parameter) != dtype:
                continue
            num_bytes = parameter.numel() * dtype.itemsize
            if bucket and filled + num_bytes > bucket_bytes:
                yield bucket
                bucket, filled = [], 0
            bucket.append(parameter)
            filled += num_bytes
        if bucket:
            yield bucket


def _flatten(parameters: list[nn.Parameter]) -> Tensor:
    first = parameters[0]
    buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=gradient_dtype(first), device=first.device)
    start = 0
    for parameter in parameters:
        parameter.grad = buffer[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return buffer
