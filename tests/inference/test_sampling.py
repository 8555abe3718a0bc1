"""Sampling: transformers' probabilities, right frequencies, and the same tokens on every mesh and in every batch."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from scipy.stats import chisquare
from torch import Tensor

from hybrid_runtime.comm.axis import Axis, axis_of
from hybrid_runtime.inference.sampling import probabilities, sample, uniform
from hybrid_runtime.serving.requests import GREEDY, NOT_FINITE, Row, Sampling
from tests.models.hugging_face_models import transformers_or_skip
from tests.ranks import run_ranks

ALONE = Axis()
WAYS = [
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_k=5),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=0.4, top_k=9, top_p=0.6),
    Sampling(temperature=2.0, top_k=1000, top_p=1.0),
    Sampling(temperature=1.0, top_p=1e-6),
]


def row(request: int = 0, answer_index: int = 0) -> Row:
    return Row(slot=0, start=0, length=1, request=request, answer_index=answer_index)


def logits(rows: int, vocab_size: int = 37, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def warped(logits_RV: Tensor, sampling: Sampling) -> Tensor:
    """Transformers' probabilities, in float64."""
    warpers = transformers_or_skip()
    scores = logits_RV.double()
    ids = torch.zeros(len(scores), 1, dtype=torch.long)
    scores = warpers.TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k is not None:
        scores = warpers.TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p is not None:
        scores = warpers.TopPLogitsWarper(sampling.top_p)(ids, scores)
    return scores.softmax(1)


def test_probabilities_are_transformers() -> None:
    for seed in range(20):
        logits_RV = logits(len(WAYS), seed=seed)
        expected = torch.cat([warped(logits_RV[i : i + 1], way) for i, way in enumerate(WAYS)])
        torch.testing.assert_close(probabilities(logits_RV, WAYS), expected, rtol=1e-9, atol=1e-12)


def test_equal_logits_at_the_edge_of_top_k_are_all_kept() -> None:
    tied = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    way = Sampling(temperature=1.0, top_k=2)
    assert (probabilities(tied, [way]) > 0).tolist() == [[True, True, True, True, False]]
    torch.testing.assert_close(probabilities(tied, [way]), warped(tied, way))


def test_of_equals_top_p_takes_the_lowest_ids() -> None:
    flat = torch.zeros(1, 10)
    assert (probabilities(flat, [Sampling(temperature=1.0, top_p=0.35)]) > 0).nonzero()[:, 1].tolist() == [0, 1, 2, 3]


def test_the_smallest_temperature_is_nearly_greedy() -> None:
    logits_RV = logits(3) * 1e30
    cold = [Sampling(temperature=1e-300)] * 3
    assert sample(logits_RV, [row()] * 3, cold, 37, ALONE) == logits_RV.argmax(1).tolist()


def test_frequencies_are_the_probabilities() -> None:
    """Chi-square over 20,000 draws of each way; the seed is fixed, so that it cannot fail by chance."""
    draws, vocab_size = 20_000, 12
    for way in WAYS[:4]:
        one = logits(1, vocab_size, seed=3) / 2
        expected = probabilities(one, [way])[0] * draws
        rows = [row(request=7, answer_index=index) for index in range(draws)]
        tokens = torch.tensor(sample(one.expand(draws, -1), rows, [way] * draws, vocab_size, ALONE))
        found = torch.bincount(tokens, minlength=vocab_size)
        assert not found[expected == 0].any()
        possible = expected > 0
        if possible.sum() > 1:
            assert chisquare(found[possible].double(), expected[possible]).pvalue > 1e-3, (way, found, expected)


def test_numbers_differ_by_seed_request_and_place() -> None:
    keys = itertools.product((0, 1, 2**63 - 1), range(9), range(9))
    numbers = {uniform(*key) for key in keys}
    assert len(numbers) == 3 * 9 * 9
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(5, 3, 2) == uniform(5, 3, 2)


def test_the_batch_does_not_matter() -> None:
    logits_RV = logits(4)
    rows = [row(request=request, answer_index=2 * request) for request in range(4)]
    ways = [WAYS[1], GREEDY, WAYS[3], WAYS[0]]
    together = sample(logits_RV, rows, ways, 37, ALONE)
    alone = [sample(logits_RV[i : i + 1], rows[i : i + 1], ways[i : i + 1], 37, ALONE)[0] for i in (3, 2, 1, 0)][::-1]
    assert together == alone
    assert together[1] == int(logits_RV[1].argmax())


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert sample(torch.tensor([[1.0, 5.0, 5.0, 5.0]]), [row()], [GREEDY], 4, ALONE) == [1]


def test_padding_is_never_sampled() -> None:
    logits_RV = torch.full((2, 8), 100.0)
    logits_RV[:, :5] = 0
    logits_RV[:, 7] = torch.nan
    ways = [GREEDY, Sampling(temperature=100.0)]
    for place in range(50):
        assert all(0 <= token < 5 for token in sample(logits_RV, [row(answer_index=place)] * 2, ways, 5, ALONE))


def test_rows_that_are_not_finite_spoil_no_others() -> None:
    hot = Sampling(temperature=1.0)
    logits_RV = logits(6)
    logits_RV[0, 3] = logits_RV[3, 9] = torch.nan
    logits_RV[1, 4] = logits_RV[4, 36] = torch.inf
    logits_RV[5, :30] = -torch.inf
    ways = [GREEDY, hot, GREEDY, hot, GREEDY, hot]
    found = sample(logits_RV, [row()] * 6, ways, 37, ALONE)
    assert [token == NOT_FINITE for token in found] == [True, True, False, True, True, False]
    assert found[2] == int(logits_RV[2].argmax())
    assert found[5] >= 30
    assert sample(torch.full((2, 4), -torch.inf), [row()] * 2, [GREEDY, hot], 4, ALONE) == [NOT_FINITE] * 2


def test_bfloat16_logits() -> None:
    logits_RV = logits(3).bfloat16()
    assert sample(logits_RV, [row()] * 3, [GREEDY] * 3, 37, ALONE) == logits_RV.float().argmax(1).tolist()


def _same_when_split(rank: int) -> None:
    """37 ids over two ranks of 19 columns, one of them padding; and 3 ids over two, of which one rank has one."""
    axis = axis_of(dist.group.WORLD)
    for vocab_size in (37, 3):
        whole = logits(24, vocab_size, seed=1)
        whole[5, 1] = torch.nan
        whole[6, 0] = whole[6, vocab_size - 1] = 50  # equals on both ranks
        ways = [[GREEDY, *WAYS][i % 7] for i in range(24)]
        rows = [row(request=i // 5, answer_index=i % 5) for i in range(24)]
        columns = -(-vocab_size // 2)
        padded = torch.cat([whole, torch.full((24, 2 * columns - vocab_size), 1e9)], 1)
        mine = padded[:, rank * columns : (rank + 1) * columns]
        assert sample(mine, rows, ways, vocab_size, axis) == sample(whole, rows, ways, vocab_size, ALONE)


@pytest.mark.ranks
def test_the_same_when_the_vocabulary_is_split() -> None:
    run_ranks(2, _same_when_split)
