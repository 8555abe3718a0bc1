"""Tensor-parallel groups on one host or across hosts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.verifier.metrics import Metrics, measure
from hybrid_runtime.verifier.placement import placement_warnings
from hybrid_runtime.verifier.side import load_side
from tests.verifier.synthetic import MS, deployment, steady, write_run


def on_hosts(folder: Path, mesh: Mesh, names: list[str]) -> Metrics:
    run = write_run(folder, steady([MS] * mesh.world_size, 20, mesh=mesh), deployment(mesh))
    side = load_side(run, "candidate")
    ranks = []
    for rank, name in zip(side.ranks, names, strict=True):
        host = rank.header.host.model_copy(update={"name": name})
        ranks.append(rank._replace(header=rank.header.model_copy(update={"host": host})))
    return measure(replace(side, ranks=tuple(ranks)))


def test_groups_within_hosts_are_fine(tmp_path: Path) -> None:
    mesh = Mesh(tp_degree=2, pp_degree=2)
    assert placement_warnings(on_hosts(tmp_path, mesh, ["a", "a", "b", "b"])) == []


def test_a_group_across_hosts_is_named(tmp_path: Path) -> None:
    mesh = Mesh(tp_degree=2, pp_degree=3)
    (warning,) = placement_warnings(on_hosts(tmp_path, mesh, ["a", "a", "a", "b", "b", "b"]))
    assert warning == (
        "1 of 3 tensor-parallel groups cross the network between hosts in every layer (rank 2 on a, rank 3 on b); "
        "start a number of ranks on each machine that tp_degree = 2 divides"
    )
