"""On an axis of one rank every collective is a no-op (several ranks: tests/tensor_parallel/test_parallel_layers.py)."""

from __future__ import annotations

import torch

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import (
    all_gather_stack,
    all_reduce,
    gather_sequence,
    reduce_scatter_sequence,
    start_all_reduce,
    start_gather_sequence,
    start_reduce_scatter_sequence,
    sum_backward,
    sum_forward,
)


def test_one_rank_needs_no_process_group() -> None:
    x, axis = torch.randn(2, 3, 4), Axis()
    assert all_reduce(x, axis) is x
    assert all_gather_stack(x, axis).shape == (1, 2, 3, 4)
    for start in (start_all_reduce, start_gather_sequence, start_reduce_scatter_sequence):
        assert start(x, axis).wait() is x
    for function in (sum_forward, sum_backward, gather_sequence, reduce_scatter_sequence):
        assert function(x, axis) is x
