"""A validation's lists are right for every placement, and a pipeline's forwards overlap in them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.planner.validation_plan import forward_lists, validation_plan
from hybrid_runtime.schedule.actions import Action, Kind, parse_actions
from hybrid_runtime.schedule.check import check
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.registry import SCHEDULES
from hybrid_runtime.schedule.replay import replay
from tests.planner.test_searched import plan_of


def drawn(lists: object) -> list[str]:
    return [" ".join(map(str, actions)) for actions in lists]  # type: ignore[attr-defined]


def test_the_drawing() -> None:
    assert drawn(forward_lists((0, 1), 2, 3)) == ["0F0 0F1 0F2", "1F0 1F1 1F2"]
    assert drawn(forward_lists((0, 1, 1, 0), 2, 3)) == ["0F0 0F1 0F2 3F0 3F1 3F2", "1F0 1F1 2F0 1F2 2F1 2F2"]


@pytest.mark.parametrize("place", [(0,), (0, 1, 2), (0, 1, 2, 2, 1, 0), (0, 1, 0, 1), (1, 0, 2, 2, 0, 1)])
@pytest.mark.parametrize("microbatches", [1, 2, 7])
def test_every_placement_passes_the_check_and_overlaps(place: tuple[int, ...], microbatches: int) -> None:
    ranks = max(place) + 1
    lists = lower(forward_lists(place, ranks, microbatches), place)
    assert not check(lists, place, microbatches, "forward").findings
    durations = dict.fromkeys(((stage, Kind.F) for stage in range(len(place))), Fraction(1))
    per_rank = len(place) // ranks
    assert replay(lists, place, durations).makespan <= per_rank * (microbatches + len(place))


@pytest.mark.parametrize("name", [*SCHEDULES, "auto"])
def test_the_plan_of_a_training_becomes_one_of_forwards_on_the_same_stages(name: str) -> None:
    plan = plan_of(name)
    found = validation_plan(plan)
    assert (found.workload, found.stages, found.num_microbatches) == ("forward", plan.stages, plan.num_microbatches)
    actions = [action for row in found.actions for action in parse_actions(row)]
    forwards = {action for action in actions if action.kind is Kind.F}
    assert forwards == {
        Action(stage.index, Kind.F, microbatch) for stage in plan.stages for microbatch in range(plan.num_microbatches)
    }
    assert not any(action.kind in (Kind.B, Kind.I, Kind.W) for action in actions)


def test_a_sharded_embedding_is_looked_up_for_every_microbatch() -> None:
    plan = plan_of("1f1b", embedding_rows="equal")
    rows = [parse_actions(row) for row in validation_plan(plan).actions]
    assert [sum(action.kind is Kind.EF for action in row) for row in rows] == [plan.num_microbatches] * plan.pp_degree
    assert not any(action.kind is Kind.EB for row in rows for action in row)
