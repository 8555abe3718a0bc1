from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.planner.balance import balanced_parts
from hybrid_runtime.planner.cut_linear import at_units, fractional_cut, whole_cut
from hybrid_runtime.planner.work import Position, stage_works
from tests.planner.planning import line_of


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("limited", [True, False])
def test_the_best_of_250_random_instances(alike: bool, limited: bool) -> None:
    """Units that weigh alike in all parts, or differently: a stage that computes them again takes longer."""
    rng = random.Random(1)
    for _ in range(250):
        parts = rng.randint(1, 4)
        first = [rng.randint(0, 20) for _ in range(rng.randint(parts, parts + 5))]
        weights = [first if alike else [weight * rng.randint(2, 4) for weight in first] for _ in range(parts)]
        sizes = [rng.randint(1, 10) for _ in first]
        caps = [rng.randint(8, 50) for _ in range(parts)]

        def fits(part: int, a: int, b: int, sizes: list[int] = sizes, caps: list[int] = caps) -> bool:
            return sum(sizes[a:b]) <= caps[part]

        cuts = [(0, *inner, len(first)) for inner in combinations(range(1, len(first)), parts - 1)]
        possible = [cut for cut in cuts if not limited or all(fits(q, a, b) for q, (a, b) in enumerate(pairwise(cut)))]
        found = balanced_parts(weights, fits if limited else None)
        if found is None:
            assert not possible
            continue
        sums = [[sum(row[a:b]) for row, (a, b) in zip(weights, pairwise(cut))] for cut in possible]
        best = min((max(one), sum(weight * weight for weight in one)) for one in sums)
        upto = tuple(place.unit for place in at_units(found))
        mine = [sum(row[a:b]) for row, (a, b) in zip(weights, pairwise(upto))]
        assert upto in possible
        assert (max(mine), sum(weight * weight for weight in mine)) == best


@given(
    layers=st.integers(2, 10),
    stages=st.integers(1, 8),
    head=st.integers(1, 400),
    extra=st.sampled_from([0, 25]),
)
@settings(max_examples=60, deadline=None)
def test_fractional_cuts_lose_nothing(layers: int, stages: int, head: int, extra: int) -> None:
    line = line_of([(0, 1, 0), *[(300, 8, 7), (600, 96, 11)] * layers, (head, 1, 20)])
    found = fractional_cut([line] * stages, lambda work: work.split_load, [extra] * stages)
    if found is None:
        return
    assert found[0] == Position(0)
    assert found[-1] == line.end
    assert len(found) == stages + 1
    assert all(a < b for a, b in pairwise(found))
    works = stage_works([line] * stages, found)
    assert sum(work.flops for work in works) == line.total.flops
    assert sum(work.parameters for work in works) == line.total.parameters
    names = [name for a, b in pairwise(found) for name in line.names(a, b)]
    assert {name.partition("[")[0] for name in names} == {unit.cost.name for unit in line.units}
    if all(work.split_load > 100 for work in works) and head < 100:
        assert max(work.split_load for work in works) - min(work.split_load for work in works) <= 2 * 300 // 8


def test_names_of_pieces() -> None:
    line = line_of([(100, 1, 0), (100, 64, 0), (100, 1, 0)])
    found = fractional_cut([line] * 2, lambda work: work.split_load)
    assert found == (Position(0), Position(1, 32), Position(3))
    assert line.names(found[0], found[1]) == ("0.attn", "1.mlp[0:32]")
    assert line.names(found[1], found[2]) == ("1.mlp[32:64]", "2.attn")
    assert line.message_bytes(found[1]) == 2 * line.message_bytes(found[0])


def test_whole_cuts_obey_the_memory_of_every_stage() -> None:
    line = line_of([(10, 1, 4)] * 6)
    assert whole_cut([line] * 2, lambda work: work.split_load) == (Position(0), Position(3), Position(6))
    limited = whole_cut([line] * 2, lambda work: work.split_load, lambda stage, work: work.saved <= (8, 16)[stage])
    assert limited == (Position(0), Position(2), Position(6))
    assert whole_cut([line] * 2, lambda work: work.split_load, lambda stage, work: work.saved <= 8) is None
    assert whole_cut([line] * 7, lambda work: work.split_load) is None
