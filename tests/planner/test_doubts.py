"""A plan that is hardly better than a simpler one, or that hardly computes, says so in one line."""

from __future__ import annotations

from typing import Any

from hybrid_runtime.planner.doubts import doubts
from hybrid_runtime.planner.planned import plan_deployment
from hybrid_runtime.predicted import PredictedStep
from tests.planner.planning import calibration, deployment


def predicted(**changes: Any) -> PredictedStep:
    """Of a tiny model on six ranks, with other baselines."""
    found = plan_deployment(deployment(search={"vary": []}), calibration(deployment())).plan.predicted
    assert found is not None
    return found.model_copy(update=changes)


def test_a_plan_that_is_clearly_best_says_nothing() -> None:
    found = predicted()
    slow = found.step_time.model_copy(update={"p50_ns": found.step_time.p90_ns + 1})
    slower = [one.model_copy(update={"step_time": slow}) for one in found.baselines]
    busy = [rank.model_copy(update={"time": rank.time.model_copy(update={"forward_ns": found.step_time.p50_ns})})
            for rank in found.ranks]  # fmt: skip
    assert doubts(found.model_copy(update={"baselines": tuple(slower), "ranks": tuple(busy)})) == []


def test_a_simpler_plan_within_the_interval_and_a_faster_one() -> None:
    found = predicted()
    at_p90 = found.step_time.model_copy(update={"p50_ns": found.step_time.p90_ns})
    faster = found.step_time.model_copy(update={"p50_ns": found.step_time.p50_ns - 1})
    one = found.baselines[0]
    said = doubts(found.model_copy(update={"baselines": (one.model_copy(update={"step_time": at_p90}),)}))
    assert "naive_pipeline on tp 2 x pp 3 x dp 1" in said[0]
    assert "within this prediction's interval" in said[0]
    said = doubts(found.model_copy(update={"baselines": (one.model_copy(update={"step_time": faster}),)}))
    assert "would be faster" in said[0]


def test_a_step_that_is_mostly_calls() -> None:
    found = predicted(baselines=())
    idle = found.step_time.model_copy(update={"p50_ns": 10 * found.step_time.p50_ns})
    said = doubts(found.model_copy(update={"step_time": idle}))
    assert len(said) == 1
    assert "of the step only" in said[0]


def test_the_planner_says_it_first() -> None:
    """With the declared rates of a GPU, so tiny a model is nothing but sums over tensor ranks."""
    found = plan_deployment(deployment(), None)
    assert found.plan.predicted is not None
    said = doubts(found.plan.predicted)
    assert any("of the step only" in line for line in said)
    assert found.sentences[: len(said)] == tuple(said)
