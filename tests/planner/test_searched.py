"""`schedule = "auto"`: the same lists on every rank, within the limit, no longer than the known ones."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest

from hybrid_runtime.deployment import parse_deployment
from hybrid_runtime.errors import DeploymentError, PlanError
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.baseline import baseline_deployment
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.verifier.static import static_checks


def values(schedule: str, **pipeline: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "model": {"preset": "tiny", "num_layers": 12},
        "parallel": {"pp_degree": 3},
        "batch": {"global_batch_size": 9, "microbatch_size": 1, "sequence_length": 32},
        "pipeline": {"schedule": schedule} | pipeline,
    }


def plan_of(schedule: str, **pipeline: Any) -> Plan:
    deployment = parse_deployment(values(schedule, **pipeline), source="test")
    assert deployment.shape is not None
    return make_plan(deployment, unit_costs(deployment.shape, microbatch_size=1, sequence_length=32, workload="train"))


def test_a_searched_plan() -> None:
    plan = plan_of("auto")
    assert plan.stage_to_rank == (0, 1, 2, 2, 1, 0)
    assert max(plan.peak_microbatches) <= 4
    assert min(plan.prediction.ideal_busy_ppm) >= min(plan_of("zb_v").prediction.ideal_busy_ppm)


def test_every_process_finds_the_same() -> None:
    code = "from tests.planner.test_searched import plan_of; print(plan_of('auto', in_flight_limit=3).fingerprint)"
    found = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True) for _ in range(2)]
    assert {process.stdout.decode().strip() for process in found} == {plan_of("auto", in_flight_limit=3).fingerprint}


def test_the_limit_is_obeyed() -> None:
    assert max(plan_of("auto", in_flight_limit=2).peak_microbatches) <= 2
    assert plan_of("auto", virtual_stages=1, in_flight_limit=3).stage_to_rank == (0, 1, 2)
    assert max(plan_of("auto", virtual_stages=3).peak_microbatches) <= 4


def test_no_clock_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_of("auto").fingerprint
    ticks = iter(range(0, 10**12, 10**6))
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    assert plan_of("auto").fingerprint == before


def test_what_auto_refuses() -> None:
    with pytest.raises(DeploymentError, match="pipeline: has in_flight_limit, which only schedule auto obeys"):
        parse_deployment(values("1f1b", in_flight_limit=2), source="test")
    forward = parse_deployment(values("auto") | {"workload": {"kind": "forward"}}, source="test")
    with pytest.raises(PlanError, match="searches training steps, not 'forward'"):
        make_plan(forward, plan_of("1f1b").units)


def test_the_baseline_of_a_searched_candidate() -> None:
    for kind, schedule in (("single", "1f1b"), ("naive_pipeline", "gpipe"), ("pp_only", "auto")):
        tables = values("auto", in_flight_limit=5) | {"baseline": {"kind": kind}}
        pipeline = baseline_deployment(parse_deployment(tables, source="test")).pipeline
        assert (pipeline.schedule, pipeline.in_flight_limit) == (schedule, 5 if schedule == "auto" else None)


def test_static_checks_do_not_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_runtime.planner.make.searched_lists", None)
    tables = values("auto") | {"targets": {"utilisation_percent": 90}}
    rows = {row.id: row for row in static_checks(parse_deployment(tables, source="test"))}
    assert rows["schedule"].outcome == "PASS"
    assert rows["schedule"].detail == "searched, and proved free of deadlock, when a run plans"
    bound = Fraction(9, 9 + Fraction(2, 6))  # rank 2 waits for two forwards of a stage, each a sixth of its work
    assert f"allow at most {float(100 * bound):.2f} %" in rows["compute_busy_min"].detail
    tables["targets"] = {"utilisation_percent": 97}
    rows = {row.id: row for row in static_checks(parse_deployment(tables, source="test"))}
    assert rows["compute_busy_min"].outcome == "FAIL"
