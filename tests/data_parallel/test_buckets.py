from __future__ import annotations

import pytest
import torch
from torch import nn

from hybrid_runtime.comm.axis import Axis, axis_of
from hybrid_runtime.comm.collectives import start_gather_slices
from hybrid_runtime.data_parallel.buckets import Bucket, GradientBuckets
from tests.ranks import run_ranks


def parameters(*sizes: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]


def lengths(buckets: GradientBuckets) -> list[int]:
    return [bucket.gradients.numel() for bucket in buckets.buckets]


def test_gradients_are_views_of_few_buffers_in_order() -> None:
    listed = parameters(4, 6, 5)
    buckets = GradientBuckets(listed, bucket_bytes=40)
    assert lengths(buckets) == [10, 5]
    assert listed[1].grad is not None
    listed[1].grad.fill_(3)
    assert buckets.buckets[0].gradients.tolist() == [0] * 4 + [3] * 6
    assert buckets.num_bytes == 60


def test_parameters_keep_their_values_in_buffers_with_matrices_first() -> None:
    vector, matrix = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([[3.0], [4.0], [5.0]]))
    (bucket,) = GradientBuckets([vector, matrix]).buckets
    assert bucket.values.tolist() == [3, 4, 5, 1, 2]
    assert (vector.tolist(), matrix.tolist()) == ([1, 2], [[3], [4], [5]])
    bucket.values.add_(1)
    assert (vector.tolist(), matrix.tolist()) == ([2, 3], [[4], [5], [6]])
    assert list(bucket.runs()) == [(True, 0, 3), (False, 3, 5)]


def test_a_parameter_larger_than_a_bucket_gets_its_own() -> None:
    assert lengths(GradientBuckets(parameters(2, 100, 2), bucket_bytes=40)) == [2, 100, 2]


def test_types_are_not_mixed_and_tied_parameters_count_once() -> None:
    half = parameters(3, dtype=torch.bfloat16)
    full = parameters(2)
    buckets = GradientBuckets([*full, *half, *full])
    assert [(b.values.dtype, b.gradients.numel()) for b in buckets.buckets] == [(torch.float32, 2), (torch.bfloat16, 3)]


def test_frozen_parameters_have_no_gradient() -> None:
    frozen, trained = parameters(2, 2)
    frozen.requires_grad_(False)
    assert GradientBuckets([frozen, trained]).num_bytes == 8
    assert frozen.grad is None


def test_stages_and_lone_parameters_have_buckets_of_their_own() -> None:
    first, second, tied, late = parameters(1, 2, 3, 4)
    stages = {id(first): 0, id(second): 3}
    buckets = GradientBuckets([first, tied, second, late], stage_of=lambda p: stages.get(id(p)), alone=[tied])
    assert [(b.stage, b.gradients.numel()) for b in buckets.buckets] == [(0, 1), (None, 3), (3, 2), (None, 4)]


def test_autograd_accumulates_into_the_buffer() -> None:
    (weight,) = parameters(2)
    buckets = GradientBuckets([weight])
    for _ in range(2):
        (weight * torch.tensor([1.0, 2.0])).sum().backward()
    assert buckets.buckets[0].gradients.tolist() == [2, 4]
    buckets.scale(torch.tensor(0.5))
    assert buckets.buckets[0].gradients.tolist() == [1, 2]
    buckets.zero()
    assert buckets.buckets[0].gradients.tolist() == [0, 0]


@pytest.mark.parametrize(("size", "padded"), [(2, 64), (3, 48), (5, 80)])
def test_slices_are_equal_and_cover_every_element_once(size: int, padded: int) -> None:
    """40 elements: of two slices of 32 the second is 8 long, of three of 16 the last is 8, of five two are empty."""
    updated: dict[bool, list[int]] = {True: [], False: []}
    for rank in range(size):
        bucket = Bucket([nn.Parameter(torch.zeros(5, 6)), *parameters(10)], None, Axis(size, rank), sharded=True)
        assert bucket.gradients.numel() == bucket.values.numel() == padded
        for decay, start, stop in bucket.runs():
            updated[decay] += range(start, stop)
    assert (updated[True], updated[False]) == (list(range(30)), list(range(30, 40)))


def test_one_replica_needs_no_group() -> None:
    buckets = GradientBuckets(parameters(2), sharded=True)
    buckets.start_stage(0)
    buckets.finish()
    assert not buckets.buckets[0].is_sharded


def sum_over_ranks(rank: int) -> None:
    axis = axis_of(torch.distributed.group.WORLD)
    for sharded in (False, True):
        listed = parameters(3, 40)
        stages = {id(listed[1]): 2}
        buckets = GradientBuckets(listed, axis, sharded=sharded, stage_of=lambda p: stages.get(id(p)))  # noqa: B023
        for bucket in buckets.buckets:
            bucket.gradients[: bucket.members[-1].stop].fill_(rank + 1)
        buckets.start_stage(2)  # under way when the others begin, and summed once
        buckets.finish()
        for bucket in buckets.buckets:
            start, stop = bucket.own
            assert bucket.gradients[start:stop].tolist() == [6] * (stop - start)
            if sharded:
                start_gather_slices(bucket.gradients, axis).wait()
        assert [p.grad.tolist() for p in listed if p.grad is not None] == [[6] * 3, [6] * 40]


@pytest.mark.ranks
def test_sums_over_three_replicas() -> None:
    run_ranks(3, sum_over_ranks)
