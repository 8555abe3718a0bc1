from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from hybrid_runtime.planner.balance import balanced_sizes


def brute_force(weights: list[int], num_parts: int) -> list[int]:
    """Tries every cut: smallest maximum, then smallest sum of squares, then shortest first parts."""

    def rank(sizes: list[int]) -> tuple[int, int, list[int]]:
        row = iter(weights)
        sums = [sum(next(row) for _ in range(size)) for size in sizes]
        return max(sums), sum(part * part for part in sums), sizes

    cuts = combinations(range(1, len(weights)), num_parts - 1)
    return min(([end - start for start, end in pairwise((0, *cut, len(weights)))] for cut in cuts), key=rank)


def test_equal_to_brute_force() -> None:
    source = random.Random(20)
    for instance in range(800):
        largest = (3, 10, 100, 10**12)[instance % 4]
        weights = [source.randint(0, largest) for _ in range(source.randint(1, 10))]
        num_parts = source.randint(1, len(weights))
        assert balanced_sizes(weights, num_parts) == brute_force(weights, num_parts), (weights, num_parts)


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
