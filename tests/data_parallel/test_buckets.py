from __future__ import annotations

import torch
from torch import nn

from hybrid_runtime.comm.axis import Axis, axis_of
from hybrid_runtime.data_parallel.buckets import GradientBuckets
from tests.ranks import run_ranks


def parameters(*sizes: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]


def test_gradients_are_views_of_few_buffers_in_order() -> None:
    listed = parameters(4, 6, 5)
    buckets = GradientBuckets(listed, bucket_bytes=40)
    assert [buffer.numel() for buffer in buckets.buffers] == [10, 5]
    assert listed[1].grad is not None
    listed[1].grad.fill_(3)
    assert buckets.buffers[0].tolist() == [0] * 4 + [3] * 6
    assert buckets.num_bytes == 60


def test_a_parameter_larger_than_a_bucket_gets_its_own() -> None:
    assert [b.numel() for b in GradientBuckets(parameters(2, 100, 2), bucket_bytes=40).buffers] == [2, 100, 2]


def test_types_are_not_mixed_and_tied_parameters_count_once() -> None:
    half = parameters(3, dtype=torch.bfloat16)
    full = parameters(2)
    buckets = GradientBuckets([*full, *half, *full])
    assert [(b.dtype, b.numel()) for b in buckets.buffers] == [(torch.float32, 2), (torch.bfloat16, 3)]


def test_frozen_parameters_have_no_gradient() -> None:
    frozen, trained = parameters(2, 2)
    frozen.requires_grad_(False)
    assert GradientBuckets([frozen, trained]).num_bytes == 8
    assert frozen.grad is None


def test_autograd_accumulates_into_the_buffer() -> None:
    (weight,) = parameters(2)
    buckets = GradientBuckets([weight])
    for _ in range(2):
        (weight * torch.tensor([1.0, 2.0])).sum().backward()
    assert buckets.buffers[0].tolist() == [2, 4]
    buckets.scale(torch.tensor(0.5))
    assert buckets.buffers[0].tolist() == [1, 2]
    buckets.zero()
    assert buckets.buffers[0].tolist() == [0, 0]


def test_one_replica_needs_no_group() -> None:
    buckets = GradientBuckets(parameters(2))
    buckets.sum_over(Axis())


def sum_over_ranks(rank: int) -> None:
    listed = parameters(3, 4)
    buckets = GradientBuckets(listed, bucket_bytes=12)
    for buffer in buckets.buffers:
        buffer.fill_(rank + 1)
    buckets.sum_over(axis_of(torch.distributed.group.WORLD))
    assert [parameter.grad.tolist() for parameter in listed if parameter.grad is not None] == [[3] * 3, [3] * 4]


def test_sums_over_replicas() -> None:
    run_ranks(2, sum_over_ranks)
