"""Ranks and coordinates: the drawing of mesh.py, and arithmetic that must fit itself for every size."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_runtime.mesh import Mesh, Place, divisors, nearest_meshes

DRAWN = Mesh(tp_degree=2, pp_degree=3, dp_degree=2)
#            dp 0                 dp 1
#         pp 0  1  2           pp 0  1  2
#    tp 0    0  2  4              6  8 10
#    tp 1    1  3  5              7  9 11
meshes = st.builds(
    lambda tp, pp, dp: Mesh(tp_degree=tp, pp_degree=pp, dp_degree=dp),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 5),
)


def test_drawn_groups() -> None:
    assert DRAWN.tp_groups() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert DRAWN.pp_columns() == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert DRAWN.dp_groups() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
    assert str(DRAWN) == "tp 2 x pp 3 x dp 2"


def test_drawn_places() -> None:
    assert DRAWN.place(9) == Place(rank=9, dp=1, pp=1, tp=1)
    assert str(DRAWN.place(9)) == "rank 9 (dp 1, pp 1, tp 1)"
    assert DRAWN.rank(dp=1, pp=2, tp=0) == 10


@given(meshes)
def test_every_rank_has_one_place_and_one_group_of_each_axis(mesh: Mesh) -> None:
    places = list(mesh.places())
    assert [mesh.rank(dp=place.dp, pp=place.pp, tp=place.tp) for place in places] == list(range(mesh.world_size))
    assert len(set(places)) == mesh.world_size
    for groups, degree in (
        (mesh.tp_groups(), mesh.tp_degree),
        (mesh.pp_columns(), mesh.pp_degree),
        (mesh.dp_groups(), mesh.dp_degree),
    ):
        assert {len(group) for group in groups} == {degree}
        assert sorted(rank for group in groups for rank in group) == list(range(mesh.world_size))


def test_a_rank_outside_is_refused() -> None:
    for rank in (-1, 12):
        with pytest.raises(ValueError, match=f"rank {rank} is outside the mesh of 12 ranks"):
            DRAWN.place(rank)


@pytest.mark.parametrize("name", ["tp_degree", "pp_degree", "dp_degree"])
def test_a_degree_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        Mesh(**{name: 0})


def test_nearest_meshes_of_the_original_plan() -> None:
    original = Mesh(tp_degree=2, pp_degree=3)
    assert list(map(str, nearest_meshes(original, 3))) == [
        "tp 1 x pp 3 x dp 1",  # one degree changed
        "tp 3 x pp 1 x dp 1",
        "tp 1 x pp 1 x dp 3",
    ]
    assert nearest_meshes(original, 6)[0] == original


@given(meshes, st.integers(1, 60))
def test_nearest_meshes_are_all_meshes_of_that_size(mesh: Mesh, devices: int) -> None:
    found = nearest_meshes(mesh, devices)
    every = {
        (tp, pp)
        for tp in range(1, devices + 1)
        for pp in range(1, devices + 1)
        if devices % tp == 0 and devices // tp % pp == 0
    }
    assert {(other.tp_degree, other.pp_degree) for other in found} == every
    assert {other.world_size for other in found} == {devices}
    assert len(found) == len(every)


@pytest.mark.alone
def test_nearest_meshes_of_a_billion_devices_are_found_at_once() -> None:
    start = time.perf_counter()
    assert nearest_meshes(DRAWN, 10**9)[0].world_size == 10**9
    assert time.perf_counter() - start < 2


@given(st.integers(1, 10_000))
def test_divisors(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]
