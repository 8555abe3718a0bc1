"""Samples depend on seed and step alone; every mesh sees the same global batch; no window repeats within an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.data.permutation import permuted
from hybrid_runtime.data.sampler import Batches, window_starts
from hybrid_runtime.data.tokens import ArrayTokens, Ids
from hybrid_runtime.errors import UsageError

TEXT = ArrayTokens("count", 1 << 16, np.arange(1001, dtype=np.uint16))  # token i is i: a sample shows its place


def sample_starts(num_tokens: int, sequence_length: int, seed: int, step: int, global_batch_size: int) -> Ids:
    positions = step * global_batch_size + np.arange(global_batch_size, dtype=np.int64)
    return window_starts(num_tokens, sequence_length, seed, positions)


def batches(dp_degree: int = 1, dp_rank: int = 0, *, device: str = "cpu") -> Batches:
    """Batches of 8 samples out of 100 windows."""
    return Batches(
        TEXT, global_batch_size=8, microbatch_size=2, sequence_length=10, dp_degree=dp_degree, dp_rank=dp_rank,
        seed=5, device=torch.device(device),
    )  # fmt: skip


def tokens_of(some: Batches, step: int) -> list[list[int]]:
    return [row for microbatch in some.microbatches(step) for row in microbatch.tokens.tolist()]


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    images = permuted(np.arange(size), size, seed, np.full(size, epoch))
    assert sorted(images.tolist()) == list(range(size))


def test_every_window_is_seen_before_one_repeats_also_across_epochs() -> None:
    starts = np.concatenate([sample_starts(1001, 10, 3, step, 8) for step in range(25)])  # 200 samples: two epochs
    windows = list(range(0, 1000, 10))
    assert sorted(starts[:100].tolist()) == windows
    assert sorted(starts[100:].tolist()) == windows
    assert starts[:100].tolist() != starts[100:].tolist()


def test_seed_and_step_alone_give_the_samples() -> None:
    assert sample_starts(1001, 10, 3, 7, 8).tolist() == sample_starts(1001, 10, 3, 7, 8).tolist()
    assert sample_starts(1001, 10, 3, 7, 8).tolist() != sample_starts(1001, 10, 4, 7, 8).tolist()
    assert sample_starts(1001, 10, 3, 7, 8).tolist() != sample_starts(1001, 10, 3, 8, 8).tolist()


def test_the_order_looks_random() -> None:
    order = permuted(np.arange(10_000), 10_000, 1, np.zeros(10_000, dtype=np.int64)).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04  # 4 sigma of a random order
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.04


def test_far_into_a_huge_text_it_needs_neither_memory_nor_time() -> None:
    starts = sample_starts(10**13, 4096, 2**63 - 1, 10**9, 1024)
    assert len(set(starts.tolist())) == 1024
    assert 0 <= starts.min() <= starts.max() < 10**13 - 4096


def test_the_union_over_replicas_is_the_global_batch_on_any_mesh() -> None:
    whole = tokens_of(batches(), 4)
    assert [row[0] for row in whole] == sample_starts(1001, 10, 5, 4, 8).tolist()
    for dp_degree in (2, 4):
        replicas = [tokens_of(batches(dp_degree, dp_rank), 4) for dp_rank in range(dp_degree)]
        assert [row for replica in replicas for row in replica] == whole


def test_microbatches_have_their_size_and_targets_are_one_token_ahead() -> None:
    microbatches = batches(2, 1).microbatches(0)
    assert len(microbatches) == 2
    for microbatch in microbatches:
        assert microbatch.targets is not None
        assert (microbatch.tokens.shape, microbatch.tokens.dtype) == ((2, 10), torch.int64)
        assert microbatch.tokens.is_contiguous()
        assert microbatch.targets.is_contiguous()
        assert torch.equal(microbatch.targets, microbatch.tokens + 1)


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match=r"global_batch_size = 8 is not a multiple of dp_degree x .* = 3 x 2"):
        batches(3)
    with pytest.raises(UsageError, match="10 tokens are too few for a sample of sequence_length 10"):
        sample_starts(10, 10, 0, 0, 1)


@pytest.mark.gpu(1)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_gets_the_same_tokens() -> None:
    on_gpu = batches(device="cuda:0")
    assert on_gpu.microbatches(0)[0].tokens.device.type == "cuda"
    assert tokens_of(on_gpu, 4) == tokens_of(batches(), 4)
