"""No document is in both parts, none is in neither, and both read as the documents they consist of."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.data.corpus import open_corpus
from hybrid_runtime.data.split import RUNS, held_out, split
from hybrid_runtime.errors import UsageError
from tests.data.corpora import random_documents, write_corpus


@settings(deadline=None, max_examples=200)
@given(count=st.integers(2, 10**10), parts=st.integers(2, 10**4))
def test_the_wanted_number_of_documents_is_held_out_in_order_in_few_ranges(count: int, parts: int) -> None:
    kept = held_out(count, Fraction(1, parts))
    assert sum(stop - first for first, stop in kept) == max(1, count // parts)
    assert kept[0].first >= 0
    assert kept[-1].stop <= count
    assert all(before.stop <= after.first for before, after in pairwise(kept))
    assert len(kept) <= RUNS


def test_it_is_spread_over_the_corpus() -> None:
    middles = [(first + stop) / 2 for first, stop in held_out(10**9, Fraction(1, 100))]
    assert np.histogram(middles, bins=10, range=(0, 10**9))[0].tolist() == [100] * 10


def test_both_parts_read_as_their_documents(tmp_path: Path) -> None:
    documents = random_documents(300)
    corpus = open_corpus(write_corpus(tmp_path / "c", documents))
    held = {number for first, stop in held_out(300, Fraction(1, 10)) for number in range(first, stop)}
    assert len(held) == 30
    for part, numbers in zip(split(corpus, Fraction(1, 10)), (sorted(set(range(300)) - held), sorted(held))):
        texts = [documents[number] for number in numbers]
        whole = [id for text in texts for id in text]
        starts = np.cumsum([0, *map(len, texts)])[:-1].tolist()
        assert (len(part), part.read(0, len(part)).tolist()) == (len(whole), whole)
        assert part.document_starts(0, len(part)).tolist() == starts
        for start in range(0, len(whole) - 40, 37):
            assert part.read(start, 40).tolist() == whole[start : start + 40]
            assert part.document_starts(start, start + 40).tolist() == [s for s in starts if start <= s < start + 40]


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    corpus = open_corpus(write_corpus(tmp_path / "c", [[1, 2, 3]]))
    with pytest.raises(UsageError, match=r"has 1 document\(s\), too few to keep one apart"):
        split(corpus, Fraction(1, 2))
