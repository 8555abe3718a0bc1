"""The most balanced cut of a row of items into consecutive, non-empty parts: exact and deterministic. An item may weigh
differently in every part (a unit that one stage computes again and another does not).

First the largest part is made as small as possible; of all cuts that reach this, the one with the smallest sum of
squares is taken (the lighter parts are evened out too); of those, the one whose first part is shortest, then second.

The first step is the linear partition problem, solved by bisection over the integer limit, each part taking what it
can; the second a dynamic programme over (first unit, parts left) in which no part exceeds the limit. Where items weigh
differently in parts (what one takes may be lighter in the next), or a part must also fit into something of its own (a
rank's memory), the first step is a dynamic programme too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

Fits = Callable[[int, int, int], bool]  # (part, first, end): whether the part may hold weights[first:end]


def balanced_sizes(weights: Sequence[int], num_parts: int, fits: Fits | None = None) -> list[int] | None:
    """Length of each part; None if no cut fits.

    Args:
        weights: non-negative integers, at least `num_parts` of them.
        fits: what a part may hold; whatever fits must fit in part too.
    """
    return balanced_parts([weights] * num_parts, fits)


def balanced_parts(weights: Sequence[Sequence[int]], fits: Fits | None = None) -> list[int] | None:
    """As `balanced_sizes`.

    Args:
        weights: of all items, as they weigh in each part.
    """
    num_parts = len(weights)
    assert 1 <= num_parts <= len(weights[0]), (num_parts, len(weights[0]))
    upto = _sums(weights)
    alike = fits is None and all(row is upto[0] for row in upto)
    limit = _smallest_limit(upto[0], num_parts) if alike else _smallest_fitting(upto, fits)
    if limit is None:
        return None
    best = _evenest(upto, limit, fits)
    sizes = []
    first = 0
    for parts_left in range(num_parts, 0, -1):
        end = best[parts_left][first][1]
        sizes.append(end - first)
        first = end
    return sizes


Sums = Sequence[Sequence[int]]  # per part: of all items before each


def _sums(weights: Sequence[Sequence[int]]) -> Sums:
    known: dict[int, list[int]] = {}  # parts that weigh alike share a row
    for row in weights:
        if id(row) not in known:
            known[id(row)] = [0, *accumulate(row)]
    return [known[id(row)] for row in weights]


def _smallest_limit(upto: Sequence[int], num_parts: int) -> int:
    low, high = 0, upto[-1]
    while low < high:
        middle = (low + high) // 2
        if _holds_all(upto, num_parts, middle):
            high = middle
        else:
            low = middle + 1
    return low


def _holds_all(upto: Sequence[int], num_parts: int, limit: int) -> bool:
    """Whether parts that each take what they can, but leave an item for each behind them, take everything."""
    count, first = len(upto) - 1, 0
    for part in range(num_parts):
        last = count - (num_parts - 1 - part)
        end = min(last, bisect_right(upto, upto[first] + limit) - 1)
        if end <= first:
            return False
        first = end
    return first == count


def _smallest_fitting(upto: Sums, fits: Fits | None) -> int | None:
    """The largest part of the best cut in which every part fits."""
    num_parts, count = len(upto), len(upto[0]) - 1
    best: dict[int, int] = {count: 0}
    for part in reversed(range(num_parts)):
        row: dict[int, int] = {}
        sums = upto[part]
        for first in range(part, count):
            for end in range(first + 1, count + 1):
                weight = sums[end] - sums[first]
                if weight >= row.get(first, weight + 1) or (fits is not None and not fits(part, first, end)):
                    break
                if end in best:
                    largest = max(weight, best[end])
                    row[first] = min(row.get(first, largest), largest)
        best = row
    return best.get(0)


def _evenest(upto: Sums, limit: int, fits: Fits | None) -> list[dict[int, tuple[int, int]]]:
    """best[parts][first] = (sum of squares, end of the first part) of the best cut of the items from `first` on into so
    many parts, the last ones."""
    num_parts, count = len(upto), len(upto[0]) - 1
    best: list[dict[int, tuple[int, int]]] = [{count: (0, count)}]
    for part in reversed(range(num_parts)):
        row: dict[int, tuple[int, int]] = {}
        sums = upto[part]
        for first in range(part, count):
            for end in range(first + 1, count + 1):
                weight = sums[end] - sums[first]
                if weight > limit or (fits is not None and not fits(part, first, end)):
                    break
                if end in best[-1]:
                    candidate = (weight * weight + best[-1][end][0], end)
                    row[first] = min(row.get(first, candidate), candidate)
        best.append(row)
    return best
