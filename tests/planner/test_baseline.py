from __future__ import annotations

from typing import Any

import pytest

from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.planner.baseline import baseline_deployment

CUTS = ["embedding..1.mlp", "2.attn..3.mlp", "4.attn..head"]


def baseline(kind: str, **tables: Any) -> Deployment:
    own = tables.pop("baseline", {})
    values = {
        "name": "candidate",
        "model": {"preset": "tiny"},
        "parallel": {"tp_degree": 2, "pp_degree": 3, "sequence_parallel": True},
        "pipeline": {"cuts": CUTS},
        "batch": {"global_batch_size": 16, "microbatch_size": 2, "sequence_length": 32},
        "workload": {"seed": 7},
        "optimizer": {"warmup_steps": 3},
        "hardware": {"device": "cpu", "threads_per_rank": 2, "oversubscribe": True, "memory_per_device": "32 GB"},
        "targets": {"throughput_gain_percent": 10},
        "declared": {"num_parts": 3},
        "measurement": {"blocks": 4},
        "baseline": {"kind": kind, **own},
    }
    return baseline_deployment(parse_deployment(values | tables, source="test"))


@pytest.mark.parametrize(
    ("kind", "own", "mesh"),
    [
        ("single", {}, Mesh()),
        ("tp_only", {}, Mesh(tp_degree=6)),
        ("tp_only", {"devices": 2}, Mesh(tp_degree=2)),
        ("pp_only", {"devices": 3}, Mesh(pp_degree=3)),
        ("dp_only", {"devices": 4}, Mesh(dp_degree=4)),
        ("naive_pipeline", {}, Mesh(tp_degree=2, pp_degree=3)),
    ],
)
def test_degrees(kind: str, own: dict[str, Any], mesh: Mesh) -> None:
    found = baseline(kind, baseline=own)
    assert found.mesh == mesh
    assert found.parallel.sequence_parallel == (mesh.tp_degree > 1)
    assert found.pipeline.cuts == (CUTS if kind == "naive_pipeline" else "balanced")
    assert found.name == f"candidate baseline {kind}"


def test_what_stays_the_same_and_what_is_not_demanded() -> None:
    found = baseline("single")
    assert found.model is not None
    assert found.batch is not None
    assert (found.model.preset, found.workload.seed, found.optimizer.warmup_steps) == ("tiny", 7, 3)
    assert (found.batch.global_batch_size, found.batch.microbatch_size, found.batch.sequence_length) == (16, 2, 32)
    assert (found.hardware.device, found.hardware.threads_per_rank, found.hardware.oversubscribe) == ("cpu", 2, True)
    assert found.measurement.blocks == 4
    assert found.hardware.memory_per_device is None
    assert found.targets.throughput_gain_percent is None
    assert found.declared.num_parts is None
    assert found.baseline is None


def test_its_own_microbatch() -> None:
    found = baseline("dp_only", baseline={"devices": 2, "microbatch_size": 4})
    assert found.batch is not None
    assert (found.batch.microbatch_size, found.num_microbatches) == (4, 2)


def test_a_naive_pipeline_has_one_microbatch_per_replica() -> None:
    found = baseline("naive_pipeline", parallel={"pp_degree": 3, "dp_degree": 2})
    assert found.batch is not None
    assert (found.pipeline.schedule, found.batch.microbatch_size, found.num_microbatches) == ("gpipe", 8, 1)


def test_cuts_that_are_not_explicit_stay() -> None:
    assert baseline("pp_only", pipeline={"cuts": "even"}).pipeline.cuts == "even"


@pytest.mark.parametrize(
    ("kind", "schedule", "expected"),
    [
        ("single", "zb_v", "1f1b"),  # one rank has nothing to schedule
        ("dp_only", "interleaved_zb", "1f1b"),
        ("single", "gpipe", "gpipe"),
        ("pp_only", "zb_v", "zb_v"),
        ("pp_only", "mine.csv", "1f1b"),  # made for three ranks, not for six
        ("naive_pipeline", "zb_v", "gpipe"),
    ],
)
def test_schedule(kind: str, schedule: str, expected: str) -> None:
    assert baseline(kind, pipeline={"schedule": schedule}).pipeline.schedule == expected


def test_stages_per_rank_go_with_the_schedule() -> None:
    pipeline = {"schedule": "interleaved_zb", "virtual_stages": 4}
    assert baseline("pp_only", pipeline=pipeline).pipeline.virtual_stages == 4
    assert baseline("single", pipeline=pipeline).pipeline.virtual_stages is None
    cuts = ["embedding..0.attn", "0.mlp", "1.attn", "1.mlp", "2.attn", "2.mlp..head"]
    naive = baseline("naive_pipeline", pipeline={"schedule": "zb_v", "cuts": cuts})
    assert naive.pipeline.cuts == "balanced"  # six stages become three


@pytest.mark.parametrize(
    ("kind", "tables", "message"),
    [
        ("single", {"batch": None}, r"candidate: a baseline needs \[batch\]"),
        (
            "single",
            {"baseline": {"kind": "single", "devices": 2}},
            r"baseline.devices = 2: a single baseline has 1 rank",
        ),
        ("naive_pipeline", {"parallel": {"pp_degree": 3, "dp_degree": 3}}, "use 15 or 18"),
        ("naive_pipeline", {"baseline": {"kind": "naive_pipeline", "microbatch_size": 2}}, "one microbatch of 16"),
        ("naive_pipeline", {"baseline": {"kind": "naive_pipeline", "devices": 4}}, "baseline has 6 rank"),
    ],
)
def test_one_sentence_says_what_is_wrong(kind: str, tables: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        baseline(kind, **tables)


def test_no_baseline() -> None:
    plain = parse_deployment({"name": "candidate"}, source="test")
    with pytest.raises(PlanError, match=r"candidate: no \[baseline\] is declared"):
        baseline_deployment(plain)
