from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import read_piece
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.planned import Planned, plan_deployment
from tests.planner.planning import calibration, deployment

PROMISES = {"compute_balance_pp": 1, "memory_balance_pp": 1}


def planned(file: Deployment, *, measured: bool = True) -> Planned:
    return plan_deployment(file, calibration(file) if measured else None)


@pytest.fixture(scope="module")
def demo() -> Planned:
    return planned(deployment(targets=PROMISES))


def test_a_planned_demo_keeps_its_promises(demo: Planned) -> None:
    best = demo.best[0]
    assert best.compute_share_range < Fraction(1, 200)
    assert best.memory_share_range < Fraction(1, 100)
    predicted = demo.plan.predicted
    assert predicted is not None
    for rank in predicted.ranks:
        assert rank.time.total_ns == predicted.step_time.p50_ns
        assert min(rank.time.model_dump().values()) >= 0
    assert predicted.bound_ns <= predicted.pipeline_ns < predicted.step_time.p50_ns
    assert sum(rank.flops for rank in predicted.ranks) == demo.plan.num_microbatches * sum(
        cost.flops for cost in demo.plan.units
    )


def test_the_plan_holds_the_model(demo: Planned) -> None:
    names = [name for stage in demo.plan.stages for name in stage.units]
    parts = {cost.name: cost.parts for cost in demo.plan.units}
    held: dict[str, int] = {}
    for name in names:
        piece = read_piece(name)
        unit = name if piece is None else piece.unit
        held[unit] = held.get(unit, 0) + (parts[unit] if piece is None else piece.parts)
    assert held == parts
    rows = [read_piece(name) for name in demo.plan.embedding_pieces]
    given = [piece for piece in rows if piece is not None]
    assert [piece.start for piece in given] == [0, *(piece.stop for piece in given[:-1])]
    assert given[-1].stop == 384
    assert all(a.stop == b.start for a, b in pairwise(given))


def test_baselines_and_reasons(demo: Planned) -> None:
    assert demo.plan.predicted is not None
    baselines = {one.kind: one for one in demo.plan.predicted.baselines}
    assert list(baselines) == [
        "naive_pipeline",
        "equal layers, 1f1b, m = p",
        "equal layers, 1f1b, same m",
        "dp_only",
    ]
    assert "microbatches of 1, 2, not of 6" in str(baselines["naive_pipeline"].why_not)
    assert "tp_degree = 1, float32 was not measured" in str(baselines["dp_only"].why_not)
    assert float(str(baselines["equal layers, 1f1b, m = p"].speed_up)) > 1.2
    assert demo.plan.predicted.alternatives
    assert any("promised" in line or "slower" in line for line in demo.why_not)
    assert any(sentence.startswith("memory: max/mean - 1 is") for sentence in demo.sentences)


def test_equal_arguments_give_equal_plans(demo: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10**12, 10**6))
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    again = planned(deployment(targets=PROMISES))
    assert again.plan.to_json() == demo.plan.to_json()
    assert again.why_not == demo.why_not


def small(**hardware: Any) -> Deployment:
    return deployment(
        model={"preset": "llama-3-8b", "num_layers": 32, "vocab_size": 128_256, "dtype": "bfloat16"},
        parallel={},
        batch={"global_batch_size": 16, "microbatch_size": 1, "sequence_length": 4096},
        hardware={"devices": 8} | hardware,
        search={"top": 0, "schedules": ["1f1b", "zb_v", "zb_h1"]},
    )


def test_degrees_and_memory() -> None:
    found = planned(small(memory_per_device="80 GB"), measured=False)
    assert found.plan.mesh.world_size == 8
    assert found.best[0].peak_bytes <= 76 * 10**9
    steps = [one.step_ns for one in found.best]
    assert steps == sorted(steps)
    assert any("out of memory" in line for line in found.why_not)
    less = planned(small(memory_per_device="40 GB"), measured=False)
    assert less.best[0].peak_bytes <= 38 * 10**9
    assert less.best[0].step_ns >= found.best[0].step_ns


def test_an_infeasible_request_says_what_would_fit() -> None:
    with pytest.raises(PlanError) as refused:
        planned(small(memory_per_device="16 GB"), measured=False)
    words = str(refused.value)
    assert "no layout fits 16 GB less 5 %" in words
    lacking, fitting, devices = re.search(r"lacks ([\d.]+) GB.*fit ([\d.]+) GB, or some (\d+) devices", words).groups()  # type: ignore[union-attr]
    assert 0 < float(lacking) < 16 < float(fitting)
    assert int(devices) > 8
    planned(small(memory_per_device=f"{float(fitting) * 1.1:.3f} GB"), measured=False)


def test_a_tied_embedding_stays() -> None:
    found = planned(deployment(model={"tie_embeddings": True}), measured=False)
    assert found.plan.embedding_pieces == ()
    assert any("tied to the head" in sentence for sentence in found.sentences)


def test_what_does_not_vary_stays() -> None:
    file = deployment(
        pipeline={"schedule": "zb_v"},
        search={"vary": ["cuts"]},
    )
    plan = planned(file).plan
    assert (plan.tp_degree, plan.pp_degree, plan.dp_degree, plan.schedule, plan.microbatch_size) == (2, 3, 1, "zb_v", 1)
    assert plan.embedding_pieces == ()
    assert any(read_piece(name) for stage in plan.stages for name in stage.units)
    whole: Plan = planned(deployment(pipeline={"schedule": "zb_v"}, search={"vary": []})).plan
    assert not any(read_piece(name) for stage in whole.stages for name in stage.units)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"batch": None}, "a plan needs \\[batch\\]"),
        ({"model": {"units": "tests.own_model:units"}}, "models of the Llama family"),
        ({"pipeline": {"schedule": "lists.csv"}, "search": {"vary": []}}, "lists from a file are not planned with"),
        ({"search": {"devices": 7, "vary": []}}, "no layout of 7 devices is possible"),
        ({"search": {"schedules": ["zb_w"]}}, "no such schedule"),
    ],
)
def test_what_cannot_be_planned(tables: dict[str, Any], words: str) -> None:
    from hybrid_runtime.deployment import parse_deployment

    values: dict[str, Any] = {
        "name": "planned",
        "model": {"preset": "tiny"},
        "parallel": {"tp_degree": 2, "pp_degree": 3},
        "batch": {"global_batch_size": 6, "microbatch_size": 1, "sequence_length": 64},
    } | tables
    with pytest.raises(PlanError, match=words):
        plan_deployment(parse_deployment({k: v for k, v in values.items() if v is not None}, source="test"), None)
