from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from hybrid_runtime.planner.balance import balanced_parts, balanced_sizes


def brute_force(weights: list[list[int]]) -> list[int]:
    """Tries every cut: smallest maximum, then smallest sum of squares, then shortest first parts."""
    count = len(weights[0])

    def rank(cut: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        sums = [sum(row[start:end]) for row, (start, end) in zip(weights, pairwise((0, *cut, count)), strict=True)]
        return max(sums), sum(part * part for part in sums), cut

    best = min(combinations(range(1, count), len(weights) - 1), key=rank)
    return [end - start for start, end in pairwise((0, *best, count))]


def test_equal_to_brute_force() -> None:
    source = random.Random(20)
    for instance in range(800):
        largest = (3, 10, 100, 10**12)[instance % 4]
        weights = [source.randint(0, largest) for _ in range(source.randint(1, 10))]
        num_parts = source.randint(1, len(weights))
        assert balanced_sizes(weights, num_parts) == brute_force([weights] * num_parts), (weights, num_parts)


def test_items_that_weigh_differently_in_parts() -> None:
    """Where the first part takes all that it can, the second is left with what is heavy there."""
    first, last = [4, 3, 21, 30, 18], [0, 1, 11, 11, 0]
    assert balanced_parts([first, first, last]) == [2, 1, 2]
    source = random.Random(21)
    for _ in range(300):
        count = source.randint(1, 8)
        kinds = [[source.randint(0, 10) for _ in range(count)] for _ in range(2)]
        weights = [source.choice(kinds) for _ in range(source.randint(1, count))]
        assert balanced_parts(weights) == brute_force(weights), weights


@pytest.mark.parametrize(
    ("weights", "num_parts", "sizes"),
    [
        ([5], 1, [1]),
        ([1, 1, 1, 9], 2, [3, 1]),
        ([0, 4, 4, 4, 4, 0], 2, [3, 3]),
        ([9, 1, 1, 1, 1], 3, [1, 2, 2]),  # the light parts are evened out although the first sets the maximum
        ([0, 0, 0], 3, [1, 1, 1]),
    ],
)
def test_by_hand(weights: list[int], num_parts: int, sizes: list[int]) -> None:
    assert balanced_sizes(weights, num_parts) == sizes
