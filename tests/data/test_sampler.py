"""Samples depend on seed and step alone; every mesh sees the same global batch; no window repeats within an epoch."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.data.corpus import Corpus
from hybrid_runtime.data.mixture import Mixture
from hybrid_runtime.data.permutation import permuted
from hybrid_runtime.data.sampler import Batches, window_starts
from hybrid_runtime.data.tokens import ArrayTokens, Ids
from hybrid_runtime.errors import UsageError
from hybrid_runtime.models.unit import NO_TARGET
from tests.data.corpora import random_corpus

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


def packed(corpus: Corpus | Mixture, dp_degree: int = 1, dp_rank: int = 0, microbatch_size: int = 2) -> Batches:
    return Batches(
        corpus, global_batch_size=8, microbatch_size=microbatch_size, sequence_length=20, dp_degree=dp_degree,
        dp_rank=dp_rank, seed=5, pack=True,
    )  # fmt: skip


def test_packed_documents_are_kept_apart(tmp_path: Path) -> None:
    corpus = random_corpus(tmp_path / "c")
    some = packed(corpus)
    ends = set(corpus.offsets.tolist())
    at = window_starts(len(corpus), 20, 5, 8 + np.arange(8))
    rows = [row for m in some.microbatches(1) for row in zip(m.tokens, m.targets, m.documents.positions)]
    for start, (tokens, targets, positions) in zip(at.tolist(), rows):
        began = start
        for place in range(20):
            began = start + place if start + place in ends else began
            following = start + place + 1
            assert tokens[place] == corpus.ids[start + place]
            assert targets[place] == (NO_TARGET if following in ends else corpus.ids[following])
            assert positions[place] == start + place - began
    for microbatch in some.microbatches(1):
        documents = microbatch.documents
        assert documents is not None
        assert documents.bounds.tolist() == [0, *np.cumsum(documents.lengths).tolist()]
        firsts = (documents.positions.flatten() == 0).nonzero().flatten().tolist()
        assert documents.bounds.tolist() == [*firsts, 40]
    targets = torch.cat([m.targets for m in some.microbatches(1) if m.targets is not None])
    assert some.num_targets(1) == int((targets != NO_TARGET).sum()) < 8 * 20


def test_packed_and_mixed_batches_are_the_same_on_any_mesh(tmp_path: Path) -> None:
    sources = tuple(random_corpus(tmp_path / str(k), 300 + 50 * k, seed=k) for k in range(3))
    blend = Mixture(sources, (Fraction(5), Fraction(3), Fraction(2)))
    whole = [packed(blend, microbatch_size=8).microbatches(step)[0] for step in range(3)]
    for dp_degree, microbatch_size in ((1, 2), (2, 4), (4, 1)):
        ranks = [packed(blend, dp_degree, rank, microbatch_size) for rank in range(dp_degree)]
        for step in range(3):
            parts = [microbatch for rank in ranks for microbatch in rank.microbatches(step)]
            assert torch.equal(torch.cat([m.tokens for m in parts]), whole[step].tokens)
            assert torch.equal(torch.cat([m.targets for m in parts]), whole[step].targets)
            assert [n for m in parts for n in m.documents.lengths] == list(whole[step].documents.lengths)
            assert len({rank.num_targets(step) for rank in ranks}) == 1


def test_sources_have_orders_of_their_own_and_the_first_the_one_it_has_alone(tmp_path: Path) -> None:
    corpus = random_corpus(tmp_path / "c", 2000)
    alone = Batches(corpus, global_batch_size=8, microbatch_size=8, sequence_length=20, seed=5)
    twice = replace(alone, source=Mixture((corpus, corpus), (Fraction(1), Fraction(1))))
    rows = [row for step in range(2) for row in tokens_of(twice, step)]
    assert rows[::2] == tokens_of(alone, 0)
    assert rows[1::2] != tokens_of(alone, 0)


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
