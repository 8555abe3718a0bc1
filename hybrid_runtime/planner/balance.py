"""The most balanced cut of a row of weights into consecutive, non-empty parts: exact and deterministic.

First the largest part is made as small as possible; of all cuts that reach this, the one with the smallest sum of
squares is taken (the lighter parts are evened out too); of those, the one whose first part is shortest, then second.

The first step is the linear partition problem, solved by bisection over the integer limit with a greedy fill; the
second a dynamic programme over (first unit, parts left) in which no part exceeds the limit. Where a part must also fit
into something of its own (a rank's memory), the first step is a dynamic programme too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

Fits = Callable[[int, int, int], bool]  # (part, first, end): whether the part may hold weights[first:end]


def balanced_sizes(weights: Sequence[int], num_parts: int, fits: Fits | None = None) -> list[int] | None:
    """Length of each part; None if no cut fits.

    Args:
        weights: non-negative integers, at least `num_parts` of them.
        fits: what a part may hold; whatever fits must fit in part too.
    """
    assert 1 <= num_parts <= len(weights), (num_parts, len(weights))
    upto = [0, *accumulate(weights)]
    limit = _smallest_limit(weights, num_parts) if fits is None else _smallest_fitting(upto, num_parts, fits)
    if limit is None:
        return None
    best = _evenest(upto, num_parts, limit, fits)
    sizes = []
    first = 0
    for parts_left in range(num_parts, 0, -1):
        end = best[parts_left][first][1]
        sizes.append(end - first)
        first = end
    return sizes


def _smallest_limit(weights: Sequence[int], num_parts: int) -> int:
    low, high = max(weights), sum(weights)
    while low < high:
        middle = (low + high) // 2
        if _parts_needed(weights, middle) <= num_parts:
            high = middle
        else:
            low = middle + 1
    return low


def _parts_needed(weights: Sequence[int], limit: int) -> int:
    parts, filled = 1, 0
    for weight in weights:
        if filled + weight > limit:
            parts, filled = parts + 1, 0
        filled += weight
    return parts


def _smallest_fitting(upto: Sequence[int], num_parts: int, fits: Fits) -> int | None:
    """The largest part of the best cut in which every part fits."""
    count = len(upto) - 1
    best: dict[int, int] = {count: 0}
    for parts in range(1, num_parts + 1):
        row: dict[int, int] = {}
        for first in range(num_parts - parts, count):
            for end in range(first + 1, count + 1):
                weight = upto[end] - upto[first]
                if weight >= row.get(first, weight + 1) or not fits(num_parts - parts, first, end):
                    break
                if end in best:
                    largest = max(weight, best[end])
                    row[first] = min(row.get(first, largest), largest)
        best = row
    return best.get(0)


def _evenest(upto: Sequence[int], num_parts: int, limit: int, fits: Fits | None) -> list[dict[int, tuple[int, int]]]:
    """best[parts][first] = (sum of squares, end of the first part) of the best cut of weights[first:] into `parts`."""
    count = len(upto) - 1
    best: list[dict[int, tuple[int, int]]] = [{count: (0, count)}]
    for parts in range(1, num_parts + 1):
        row: dict[int, tuple[int, int]] = {}
        for first in range(num_parts - parts, count):
            for end in range(first + 1, count + 1):
                weight = upto[end] - upto[first]
                if weight > limit or (fits is not None and not fits(num_parts - parts, first, end)):
                    break
                if end in best[-1]:
                    candidate = (weight * weight + best[-1][end][0], end)
                    row[first] = min(row.get(first, candidate), candidate)
        best.append(row)
    return best
