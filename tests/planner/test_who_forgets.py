"""Recomputation only on the stages that need it: against every choice there is, and planned anew from records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import recompute_text
from hybrid_runtime.planner.candidates import layouts
from hybrid_runtime.planner.evaluate import Evaluated, as_run, evaluate
from hybrid_runtime.planner.given import resolved
from hybrid_runtime.planner.layout import KINDS, Layout
from hybrid_runtime.planner.orders import known_rows
from hybrid_runtime.planner.planned import plan_deployment
from hybrid_runtime.planner.recorded import unit_times
from hybrid_runtime.planner.replan import replan
from hybrid_runtime.planner.request import model_of, setting_of, space_of
from hybrid_runtime.planner.stage_costs import step_costs
from hybrid_runtime.schedule.actions import Kind
from tests.planner.planning import deployment

FREE = ("recompute", "cuts", "embedding")


def limited(memory_gb: float, schedule: str, pp: int, vary: tuple[str, ...] = FREE, **more: Any) -> Deployment:
    tables = {"parallel": {"pp_degree": pp}} | more
    return deployment(
        model={"preset": "llama-3-8b", "num_layers": 8, "vocab_size": 32_000, "dtype": "bfloat16"},
        batch={"global_batch_size": 8, "microbatch_size": 1, "sequence_length": 4096},
        hardware={"memory_per_device": f"{memory_gb:.3f} GB"},
        pipeline={"schedule": schedule},
        search={"vary": list(vary), "top": 0},
        **tables,
    )


def of_memory(part: float, schedule: str, pp: int, vary: tuple[str, ...] = FREE, **more: Any) -> Deployment:
    """A device has this part of what the plan needs that forgets nothing."""
    free = plan_deployment(limited(1000, schedule, pp, vary, **more), None).best[0]
    return limited(free.peak_bytes / 0.95e9 * part, schedule, pp, vary, **more)


def every_choice(file: Deployment) -> Iterator[Evaluated]:
    """Whatever stages may forget, as far as it fits."""
    setting, model = setting_of(file), model_of(file, None)
    (layout,) = [one for one in layouts(space_of(file), setting) if isinstance(one, Layout)]
    rows = known_rows(layout, setting)
    assert setting.memory_bytes is not None
    for kinds in product(KINDS, repeat=len(layout.stage_to_rank)):
        for cuts in {layout.cuts, "whole" if layout.schedule == "1f1b" else layout.cuts}:
            try:
                found = evaluate(replace(layout.forgetting(kinds), cuts=cuts), setting, model, rows)  # type: ignore[arg-type]
            except PlanError:
                continue  # no cut between units fits
            if found.peak_bytes <= setting.memory_bytes:
                found = as_run(found, setting, model)
                if found.peak_bytes <= setting.memory_bytes:
                    yield found


@pytest.mark.parametrize(
    ("schedule", "pp", "part", "vary"),
    [
        ("1f1b", 3, 0.97, FREE),
        ("1f1b", 4, 0.9, FREE),
        ("1f1b", 4, 0.8, FREE),
        ("1f1b", 3, 0.8, ("recompute",)),
        ("zb_h1", 3, 0.9, ("recompute",)),
        ("zb_v", 2, 0.97, FREE),
        ("zb_v", 2, 0.9, ("recompute",)),
    ],
)
def test_the_best_choice_is_found(schedule: str, pp: int, part: float, vary: tuple[str, ...]) -> None:
    file = of_memory(part, schedule, pp, vary)
    found = plan_deployment(file, None).best[0]
    choices = list(every_choice(file))
    assert found.step_ns == min(one.step_ns for one in choices)
    alike = [one.step_ns for one in choices if isinstance(one.layout.recompute, str)]
    assert len(set(found.layout.recomputes)) > 1
    assert found.step_ns < min(alike, default=found.step_ns + 1)


def test_the_first_rank_alone_forgets_where_it_alone_lacks_memory() -> None:
    """1F1B: rank 0 of 4 holds four microbatches, rank 3 one."""
    file = of_memory(0.97, "1f1b", 4)
    planned = plan_deployment(file, None)
    assert planned.best[0].layout.recomputes == ("selective", "none", "none", "none")
    assert [stage.recompute for stage in planned.plan.stages] == ["selective", "none", "none", "none"]
    assert planned.best[0].compute_share_range < 0.002  # cut with what is computed again
    assert str(planned.best[0].layout).endswith(", recompute selective on stage 0")
    fixed = resolved(file, planned.plan, "plan.json")
    assert fixed.pipeline.recompute == ["selective", "none", "none", "none"]
    again = plan_deployment(fixed.model_copy(update={"search": file.search.model_copy(update={"vary": []})}), None)
    assert [stage.recompute for stage in again.plan.stages] == ["selective", "none", "none", "none"]


@pytest.mark.parametrize(
    "parallel", [{"pp_degree": 2, "tp_degree": 2}, {"pp_degree": 1}, {"pp_degree": 2, "dp_degree": 2}]
)
def test_few_ranks(parallel: dict[str, int]) -> None:
    vary = ("recompute", "cuts")
    file = of_memory(0.95, "1f1b", parallel["pp_degree"], vary, parallel=parallel)
    found = plan_deployment(file, None).best[0]
    assert set(found.layout.recomputes) != {"none"}
    assert found.step_ns == min(one.step_ns for one in every_choice(file))


def test_a_mixed_plan_that_ran_is_cut_anew() -> None:
    file = of_memory(0.97, "1f1b", 4)
    planned = plan_deployment(file, None)
    setting, model = setting_of(file), model_of(file, None)
    costs = step_costs(planned.best[0].staged, setting, model, lookups=True)
    line = model.line(1, 1)
    times = unit_times(planned.plan, line, costs)
    for kind, field in ((Kind.F, "forward"), (Kind.B, "backward")):  # as if nothing were computed again
        assert times[kind]["3.mlp"] == pytest.approx(getattr(line.units[6].whole, field), rel=0.05)
    slow = dict(costs.durations) | {
        (0, Kind.F): costs.compute(0, Kind.F) * 2,
        (0, Kind.B): costs.compute(0, Kind.B) * 2,
    }
    again = replan(planned.plan, resolved(file, planned.plan, "test"), replace(costs, durations=slow))
    assert [stage.recompute for stage in again.stages] == ["selective", "none", "none", "none"]
    assert len(again.stages[0].units) < len(planned.plan.stages[0].units)
    same = replan(planned.plan, resolved(file, planned.plan, "test"), costs)
    assert same.predicted is not None
    busy = [rank.time.compute_ns for rank in same.predicted.ranks]
    assert max(busy) < 1.02 * sum(busy) / 4


def test_in_words() -> None:
    assert recompute_text(["none"] * 3) == ""
    assert recompute_text(["full"] * 3) == ", recompute full"
    mixed = recompute_text(["full", "full", "selective", "none", "full"])
    assert mixed == ", recompute full on stage 0-1 and 4, selective on stage 2"
