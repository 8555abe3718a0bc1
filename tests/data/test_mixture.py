"""Every prefix has the weights; every source is gone through in order, nothing twice and nothing left out."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.data.mixture import Drawn, Mixture
from hybrid_runtime.data.tokens import ArrayTokens


def mixture(*weights: Fraction | int) -> Mixture:
    source = ArrayTokens("ids", 1, np.zeros(9, dtype=np.uint8))
    return Mixture((source,) * len(weights), tuple(map(Fraction, weights)))


def test_the_drawing() -> None:
    drawn = [mixture(5, 3, 2).draw(position) for position in range(10)]
    assert "".join("abc"[one.source] for one in drawn) == "abacabacab"
    assert drawn[7] == Drawn(2, 1)


@settings(deadline=None, max_examples=25)
@given(weights=st.lists(st.fractions(Fraction(1, 1000), 1000), min_size=1, max_size=9))
def test_any_prefix_has_the_weights_and_each_source_its_samples_in_order(weights: list[Fraction]) -> None:
    some = mixture(*weights)
    bound = Fraction(math.ceil(math.log2(len(weights))), 2) if len(weights) > 1 else 0
    counts: Counter[int] = Counter()
    for position in range(300):
        source, number = some.draw(position)
        assert number == counts[source]
        counts[source] += 1
        for other, weight in enumerate(weights):
            assert abs(counts[other] - (position + 1) * weight / sum(weights)) <= bound


def test_far_out_it_is_as_exact() -> None:
    weights = (Fraction("0.7"), Fraction("0.2"), Fraction("0.1"))
    some = mixture(*weights)
    position = 10**15
    numbers = {drawn.source: drawn.number for drawn in map(some.draw, range(position, position + 20))}
    for source, weight in enumerate(weights):
        assert abs(numbers[source] - position * weight) <= 16
