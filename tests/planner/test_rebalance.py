"""Borders follow what was measured: the slow rank gives units away, in any placement, and none is lost."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import accumulate, combinations, pairwise
from typing import Any

import pytest

from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.rebalance import Borders, _item_times, _moved, _value, rebalanced
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.step_costs import StepCosts
from tests.planner.test_given import deployed, planned

LAYERS: dict[str, Any] = {"model": {"num_layers": 6}}


def costs(plan: Plan, **slow: int) -> StepCosts:
    """Every unit takes 100 ns forward and 200 backward, those of some stages a multiple."""
    times = {}
    for stage in plan.stages:
        factor = slow.get(f"stage{stage.index}", 1)
        times[stage.index, Kind.F] = 100 * len(stage.units) * factor
        times[stage.index, Kind.B] = 200 * len(stage.units) * factor
    return StepCosts(times)


@pytest.mark.parametrize("schedule", ["1f1b", "zb_v", "interleaved_1f1b"])
def test_the_slow_rank_gives_units_away(schedule: str) -> None:
    deployment = deployed(parallel={"pp_degree": 2}, pipeline={"schedule": schedule}, **LAYERS)
    plan = planned(deployment)
    changed, after = rebalanced(plan, deployment, costs(plan, stage0=3))
    measured = costs(plan, stage0=3)
    taken = {
        name: time
        for stage in plan.stages
        for name, time in zip(stage.units, _item_times(plan, stage.index, stage.units, measured), strict=True)
    }
    before, less = (sum(taken[name] for stage in one.stages_of(0) for name in stage.units) for one in (plan, after))
    assert less < before
    assert [name for stage in after.stages for name in stage.units] == [cost.name for cost in plan.units]
    assert (after.schedule, after.stage_to_rank) == (plan.schedule, plan.stage_to_rank)
    assert changed.pipeline.cuts == [
        f"{s.units[0]}..{s.units[-1]}" if s.units[1:] else s.units[0] for s in after.stages
    ]
    assert rebalanced(plan, deployment, costs(plan, stage0=3)) == (changed, after)


def test_a_plan_that_suits_what_was_measured_stays_itself() -> None:
    deployment = deployed(parallel={"pp_degree": 2}, **LAYERS)
    plan = planned(deployment)
    flops = {(stage, kind): time for stage, time in enumerate(plan.prediction.stage_flops) for kind in (Kind.F, Kind.B)}
    again = rebalanced(plan, deployment, StepCosts(flops))
    assert (again[0], again[1]) == (deployment, plan)
    assert again[1] is plan


def test_moves_find_what_all_cuts_find() -> None:
    """Two or three stages in a row: against every cut there is; the largest rank is never more than 5 % above."""
    draw = random.Random(1)
    worst = Fraction(1)
    for _ in range(200):
        upto = list(accumulate((draw.randint(1, 9) for _ in range(draw.randint(4, 10))), initial=Fraction()))
        stages = draw.randint(2, 3)
        every: list[Borders] = [
            (0, *inner, len(upto) - 1) for inner in combinations(range(1, len(upto) - 1), stages - 1)
        ]
        found = _moved(draw.choice(every), upto, range(stages))
        best = min(_value(one, upto, range(stages)) for one in every)
        assert all(a < b for a, b in pairwise(found))
        worst = max(worst, _value(found, upto, range(stages))[0] / best[0])
    assert worst == 1
