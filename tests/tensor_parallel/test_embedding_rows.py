"""Rows of an embedding over any pipeline ranks: drawn, looked up and summed as the whole one's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.errors import UsageError
from hybrid_runtime.tensor_parallel.embedding import EmbeddingRows, VocabParallelEmbedding
from hybrid_runtime.tensor_parallel.initialise import Init
from hybrid_runtime.tensor_parallel.shard import gather_full

INIT = Init(seed=3, unit="embedding", layer="tokens", std=1.0)


@settings(max_examples=40, deadline=None)
@given(vocabulary=st.integers(1, 2100), cuts=st.lists(st.integers(0, 2100), max_size=3), tp=st.integers(1, 3))
def test_sum_of_all_rows(vocabulary: int, cuts: list[int], tp: int) -> None:
    """Over every pipeline rank and tensor rank; ranks without a single row included. Exact, forward and gradient."""
    padded = -(-vocabulary // tp) * tp
    edges = [0, *sorted(min(cut // tp * tp, padded) for cut in cuts), padded]
    tokens = torch.arange(vocabulary).repeat(2)[: 2 * (vocabulary // 2) or 1].view(1, -1)
    whole = VocabParallelEmbedding(vocabulary, 3, Axis(), init=INIT)
    expected = whole(tokens)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected.backward(gradient)
    assert whole.weight.grad is not None
    total, weight, summed = torch.zeros_like(expected), torch.zeros(vocabulary, 3), torch.zeros(vocabulary, 3)
    for start, stop in pairwise(edges):
        for rank in range(tp if stop > start else 0):
            rows = EmbeddingRows(vocabulary, 3, Axis(tp, rank), rows=(start, stop), init=INIT)
            y = rows(tokens)
            y.backward(gradient)
            assert rows.weight.grad is not None
            total += y.detach()
            weight += gather_full(rows.weight, rows.shards["weight"], Axis())
            summed += gather_full(rows.weight.grad, rows.shards["weight"], Axis())
    assert torch.equal(total, expected)
    assert torch.equal(weight, whole.weight)
    assert torch.equal(summed, whole.weight.grad)


def test_rows_in_a_larger_weight() -> None:
    """What is shared gets the values of the rows, and their gradient; the rest of it neither."""
    rows = EmbeddingRows(10, 2, Axis(), rows=(4, 7), init=INIT)
    own = rows.weight.detach().clone()
    weight = nn.Parameter(torch.zeros(10, 2))
    rows.share_rows(weight, rows.shards["weight"], 4)
    assert rows.weight is weight
    assert torch.equal(weight[4:7], own)
    assert not weight[:4].any()
    y = rows(torch.tensor([[3, 4, 6, 4]]))
    assert torch.equal(y[0], torch.stack([torch.zeros(2), own[0], own[2], own[0]]))
    y.sum().backward()
    assert weight.grad is not None
    assert weight.grad[:, 0].tolist() == [0, 0, 0, 0, 2, 0, 1, 0, 0, 0]


def test_a_foreign_token_is_refused_on_every_rank() -> None:
    rows = EmbeddingRows(10, 2, Axis(), rows=(4, 7), init=INIT)
    with pytest.raises(UsageError, match="token id 10 is outside the vocabulary of 10"):
        rows(torch.tensor([[10]]))
