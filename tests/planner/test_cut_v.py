"""V cuts: exact against brute force, and fractional ones that lose nothing."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.planner.cut_v import fractional_v_cut, v_boundaries, whole_units_v, whole_v_cut
from hybrid_runtime.planner.work import Line, Position, Work, plus, stage_works
from tests.planner.planning import line_of


def value(weights: list[list[int]], boundaries: tuple[int, ...], ranks: int) -> tuple[int, int]:
    stages = [sum(row[a:b]) for row, (a, b) in zip(weights, pairwise(boundaries))]
    pairs = [(stages[rank], stages[2 * ranks - 1 - rank]) for rank in range(ranks)]
    return max(map(sum, pairs)), sum((one - other) ** 2 for one, other in pairs)


@pytest.mark.parametrize("alike", [True, False])
def test_the_best_of_300_random_instances(alike: bool) -> None:
    rng = random.Random(0)
    for _ in range(300):
        ranks = rng.randint(1, 3)
        first = [rng.randint(0, 30) for _ in range(rng.randint(2 * ranks, 2 * ranks + 4))]
        weights = [first if alike else [weight * rng.randint(2, 3) for weight in first] for _ in range(2 * ranks)]
        mean = Fraction(sum(map(sum, weights)), 2 * ranks * ranks)
        sizes = [rng.randint(1, 15) for _ in first]
        caps = [rng.randint(20, 80) for _ in range(ranks)]
        floor = rng.choice([Fraction(0), Fraction(1, 4)])
        limited = rng.random() < 0.5

        def fits(rank: int, a: int, b: int, c: int, d: int, sizes: list[int] = sizes, caps: list[int] = caps) -> bool:
            return sum(sizes[a:b]) + sum(sizes[c:d]) <= caps[rank]

        possible = []
        for inner in combinations(range(1, len(first)), 2 * ranks - 1):
            cut = (0, *inner, len(first))
            stages = [sum(row[a:b]) for row, (a, b) in zip(weights, pairwise(cut))]
            within = not limited or all(
                fits(r, cut[r], cut[r + 1], cut[2 * ranks - 1 - r], cut[2 * ranks - r]) for r in range(ranks)
            )
            if within and min(stages) >= floor * mean:
                possible.append(value(weights, cut, ranks))
        found = whole_v_cut(weights, fits if limited else None, floor)
        if found is None:
            assert not possible
            continue
        boundaries = tuple(place.unit for place in v_boundaries(found, len(first)))
        assert value(weights, boundaries, ranks) == min(possible)


def covered(line: Line, boundaries: tuple[Position, ...]) -> list[tuple[int, int, int]]:
    """(unit, first part, last part) of every piece, in order."""
    found = []
    for start, stop in pairwise(boundaries):
        assert start < stop
        for index in range(start.unit, stop.unit + bool(stop.part)):
            first = start.part if index == start.unit else 0
            last = stop.part if index == stop.unit else line.units[index].cost.parts
            found.append((index, first, last))
    return found


@given(
    layers=st.integers(4, 12),
    ranks=st.integers(2, 4),
    head=st.integers(0, 60),
    granules=st.integers(64, 200),
    share=st.sampled_from([Fraction(1, 2), Fraction(21, 50)]),
    extra=st.integers(0, 40),
)
@settings(max_examples=60, deadline=None)
def test_fractional_cuts_lose_nothing(
    layers: int, ranks: int, head: int, granules: int, share: Fraction, extra: int
) -> None:
    costs = [(0, 1, 0), *[(300, 1, 7), (100 * granules // 64 * 5, granules, 11)] * layers, (10 * head + 1, 1, 20)]
    line = line_of(costs)
    beside = [extra] * ranks
    found = fractional_v_cut(
        [line] * 2 * ranks, lambda work: work.split_load, lambda rank, saved, _: saved, 50, extra=beside, share=share
    )
    if found is None:
        return  # too few units
    pieces = covered(line, found)
    assert found[0] == Position(0)
    assert found[-1] == line.end
    assert len(found) == 2 * ranks + 1
    for index, unit in enumerate(line.units):
        parts = [part for number, first, last in pieces if number == index for part in (first, last)]
        assert parts[0] == 0
        assert parts[-1] == unit.cost.parts
        assert parts[1:-1:2] == parts[2:-1:2]  # each piece begins where the last one ended
    works = stage_works([line] * 2 * ranks, found)
    total = works[0]
    for work in works[1:]:
        total = plus(total, work)
    assert total._replace(saved=0, until_w=0) == line.total._replace(saved=0, until_w=0)
    assert all(place.part == 0 for place in found[: ranks + 1])  # fronts end between units


def test_fractional_cuts_are_equal_to_a_granule() -> None:
    line = line_of([(0, 1, 0), *[(3000, 1, 7), (6000, 100, 11)] * 12, (5000, 1, 20)])
    for ranks in (2, 3, 4):
        found = fractional_v_cut([line] * 2 * ranks, lambda work: work.split_load, lambda *of: 0, 0)
        assert found is not None
        works = stage_works([line] * 2 * ranks, found)
        loads = [works[rank].split_load + works[2 * ranks - 1 - rank].split_load for rank in range(ranks)]
        assert all(abs(load * ranks - sum(loads)) <= 60 * ranks for load in loads)


def test_whole_units_have_fair_stages_where_that_fits() -> None:
    line = line_of([(0, 1, 0), *[(10, 1, 1)] * 20, (20, 1, 1)])
    found = whole_units_v([line] * 4, lambda work: work.split_load, None)
    assert found is not None
    stages = [work.split_load for work in stage_works([line] * 4, found)]
    assert stages[0] + stages[3] == stages[1] + stages[2] == 110
    assert min(stages) >= 0.4 * 110
    assert whole_units_v([line_of([(1, 1, 1)] * 3)] * 4, Work.split_load.__get__, None) is None  # type: ignore[attr-defined]
    assert whole_units_v([line] * 4, lambda work: work.split_load, lambda rank, work: work.saved < 5) is None


def test_two_layers_are_too_few_for_eight_ranks() -> None:
    line = line_of([(0, 1, 0), *[(10, 1, 1), (20, 64, 1)] * 2, (5, 1, 1)])
    assert fractional_v_cut([line] * 16, lambda work: work.split_load, lambda *of: 0, 0) is None


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_unit_per_stage(ranks: int) -> None:
    assert whole_v_cut([[1] * 2 * ranks] * 2 * ranks) is not None
