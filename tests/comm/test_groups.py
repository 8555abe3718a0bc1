from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist

from hybrid_runtime.comm.groups import Groups, join_groups
from hybrid_runtime.mesh import Mesh
from tests.ranks import run_ranks


def joined(
    mesh: Mesh, *edges: tuple[int, int], tied: tuple[int, int] | None = None, lookups: Sequence[int] = ()
) -> Groups:
    pairs = () if tied is None else (tied,)
    return join_groups(mesh, edges, device=torch.device("cpu"), backend="gloo", tied_pairs=pairs, lookup_ranks=lookups)


def six_ranks(rank: int) -> None:
    mesh = Mesh(tp_degree=2, pp_degree=3)
    groups = joined(mesh, (0, 1), (1, 2), (1, 0), (2, 1), tied=(0, 2), lookups=(1, 0))
    place = groups.place
    assert (groups.tp.size, groups.tp.rank) == (2, place.tp)
    assert (groups.dp.size, groups.dp.group) == (1, None)
    assert (groups.replica.size, groups.replica.rank) == (6, rank)
    tied = groups.tied[0, 2]
    assert (tied.size, tied.group is None) == ((1, True) if place.pp == 1 else (2, False))
    for axis in (groups.lookups, groups.row_gradients):
        assert (axis.size, axis.rank, axis.group is None) == ((1, 0, True) if place.pp == 2 else (2, place.pp, False))
    expected = {edge for edge in [(0, 1), (1, 2), (1, 0), (2, 1)] if place.pp in edge}
    assert set(groups.edges) == expected
    for (source, target), edge in groups.edges.items():
        other = target if place.pp == source else source
        assert dist.get_global_rank(edge.group, edge.peer) == mesh.rank(dp=0, pp=other, tp=place.tp)
        assert dist.get_world_size(edge.group) == 2
    total = torch.tensor(rank)
    dist.all_reduce(total, group=groups.tp.group)
    assert total.item() == 2 * (rank - place.tp) + 1
    assert groups.gather_numbers([rank, 2**53]) == [[r, 2**53] for r in range(6)]
    assert groups.gather_objects({"rank": rank}) == [{"rank": r} for r in range(6)]
    groups.barrier()


@pytest.mark.ranks
def test_every_group_of_a_replica() -> None:
    run_ranks(6, six_ranks)


def one_rank(rank: int) -> None:
    groups = joined(Mesh())
    assert not groups.edges
    assert all(axis.group is None for axis in (groups.tp, groups.dp, groups.replica, groups.lookups))
    assert not groups.tied
    assert groups.gather_numbers([1.5]) == [[1.5]]


@pytest.mark.ranks
def test_one_rank_needs_no_group() -> None:
    run_ranks(1, one_rank)
