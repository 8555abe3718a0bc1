"""What `plan` asks for is what `calibrate` measures: the search's sizes and those of the baselines."""

from __future__ import annotations

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.planner.asked import asked_of, devices_of
from tests.planner.planning import deployment


def asked(**tables: object) -> tuple[Deployment, tuple[tuple[int, int], ...]]:
    file = deployment(**tables)
    return file, asked_of(file)


def test_the_files_own_comes_first() -> None:
    file, found = asked(parallel={"tp_degree": 2, "pp_degree": 2})
    assert file.batch is not None
    assert devices_of(file) == 4
    assert found[0] == (2, file.batch.microbatch_size)
    assert {tp for tp, size in found[:2] if size == file.batch.microbatch_size} == {1, 2}  # four shares no heads


def test_baselines_of_a_fixed_mesh_and_size() -> None:
    batch = {"global_batch_size": 24, "microbatch_size": 1, "sequence_length": 64}
    vary = {"vary": ["schedule", "cuts"]}
    _, found = asked(parallel={"tp_degree": 1, "pp_degree": 3}, batch=batch, search=vary)
    assert {(1, 1), (1, 8), (1, 24)} <= set(found)  # its own, m = p, naive
    assert found.index((1, 8)) < found.index((1, 2))  # only replicas ask for two: they come last


def test_what_is_not_searched() -> None:
    file, found = asked(
        pipeline={"schedule": "lists.csv"}, search={"vary": []}, parallel={"tp_degree": 1, "pp_degree": 2}
    )
    assert file.batch is not None
    assert set(found) == {(1, file.batch.microbatch_size), *((1, file.batch.global_batch_size // n) for n in (1, 2))}
