"""Room for activations in place of rows, where the head's rank would idle for want of it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.planner.candidates import LARGER_FIRST_STAGE, SMALLER_FIRST_STAGE, Space, layouts
from hybrid_runtime.planner.evaluate import Evaluated, evaluate
from hybrid_runtime.planner.layout import Layout, Setting
from hybrid_runtime.planner.orders import limits, searched
from hybrid_runtime.planner.replan import layout_of, replan
from hybrid_runtime.planner.request import model_of, setting_of
from hybrid_runtime.planner.rows import water_level
from hybrid_runtime.planner.stage_costs import step_costs
from hybrid_runtime.planner.staged import embedding_parameters, stage, state_of
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.planner.write_plan import write_plan
from hybrid_runtime.schedule.rows import Rows
from tests.planner.planning import deployment

RANKS, COUNT = 8, 16
SEARCH = Space(schedules=("auto",), pp_degrees=(RANKS,), microbatch_sizes=(1,))


def eight_ranks(**more: Any) -> Deployment:
    """With a head that is more than half of what one of them computes."""
    return deployment(
        model={"num_layers": 14, "vocab_size": 4096, "hidden_size": 256, "ffn_size": 768, "num_heads": 8},
        parallel={"tp_degree": 1, "pp_degree": RANKS},
        batch={"global_batch_size": COUNT, "microbatch_size": 1, "sequence_length": 128},
        search={"teraflops_per_device": Decimal("0.01")},  # messages are short beside it
        **more,
    )


def case() -> tuple[Setting, StepModel]:
    return setting_of(eight_ranks()), model_of(eight_ranks(), None)


def offered(space: Space = SEARCH) -> list[Layout]:
    return [one for one in layouts(space, case()[0]) if isinstance(one, Layout)]


def test_many_ranks_are_offered_a_larger_first_stage_and_even_rows() -> None:
    plain, even = offered()
    assert (plain.share, plain.even_rows) == (Fraction(1, 2), False)
    assert (even.share, even.even_rows) == (LARGER_FIRST_STAGE, True)
    assert str(even) != str(replace(even, even_rows=False))


def test_a_limit_that_the_user_gives_holds_for_every_rank() -> None:
    assert [one.share for one in offered(replace(SEARCH, in_flight=9))] == [Fraction(1, 2), SMALLER_FIRST_STAGE]
    assert not any(one.even_rows for one in offered(replace(SEARCH, in_flight=9)))


def test_rows_that_are_given_leave_no_choice() -> None:
    given = offered(replace(SEARCH, rows=[512] * RANKS))
    assert given
    assert not any(one.even_rows for one in given)


@pytest.mark.parametrize("share", [Fraction(1, 2), LARGER_FIRST_STAGE])
def test_even_rows_leave_the_level_as_it_is(share: Fraction) -> None:
    setting, model = case()
    plain = replace(offered()[0], share=share)
    staged = stage(plain, setting, model)
    without = limits(staged, setting, model)
    room = limits(stage(replace(plain, even_rows=True), setting, model), setting, model)
    state = state_of(plain, model)
    states = [state.held(staged.rank_parameters(rank)) for rank in range(RANKS)]
    rows = state.held(embedding_parameters(plain, setting))
    level = int(water_level([a + s for a, s in zip(without, states)], rows))
    assert room[0] > 1.1 * without[0]
    assert all(now < before for now, before in zip(room[1:], without[1:]))
    assert [a + s + rows // RANKS for a, s in zip(room, states)] == [max(level, a + s) for a, s in zip(without, states)]


def test_even_rows_count_within_a_memory_limit() -> None:
    setting, model = case()
    even = replace(offered()[0], even_rows=True)
    staged = stage(even, setting, model)
    state = state_of(even, model)
    states = [state.held(staged.rank_parameters(rank)) for rank in range(RANKS)]
    rows = state.held(embedding_parameters(even, setting))
    tight = min(a + s for a, s in zip(limits(staged, setting, model), states)) + rows // RANKS - 1000
    held = [a + s for a, s in zip(limits(staged, replace(setting, memory_bytes=tight), model), states)]
    assert held == [tight - rows // RANKS] * RANKS


def test_the_rank_of_the_head_idles_less_at_the_same_memory() -> None:
    setting, model = case()
    short = replace(offered()[0], share=LARGER_FIRST_STAGE)
    plain, even = (
        evaluate(one, setting, model, searched(one, setting, model, 20_000_000))
        for one in (short, replace(short, even_rows=True))
    )
    assert float(even.step.bubble) < float(plain.step.bubble) - 0.005
    assert even.peak_bytes < 1.01 * plain.peak_bytes


@pytest.fixture(scope="module")
def planned() -> Evaluated:
    """With even rows, hardly searched."""
    setting, model = case()
    even = offered()[1]
    return evaluate(even, setting, model, searched(even, setting, model, 20_000))


def test_a_plan_is_not_planned_again_with_the_room_of_the_rank_of_the_head(planned: Evaluated) -> None:
    plan = write_plan(planned, *case())
    first, *others = plan.peak_microbatches
    assert first >= max(others) + 1
    assert layout_of(plan).in_flight == int(max(others))


@pytest.mark.parametrize("strict", [False, True])
def test_planning_again_tries_even_rows_unless_a_limit_is_given(
    planned: Evaluated, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def order(layout: Layout, setting: Setting, model: StepModel) -> Rows:
        tried.append((layout.cuts, layout.even_rows))
        if layout.even_rows and layout.cuts == "whole":
            raise PlanError("no schedule fits")
        return planned.step.rows

    monkeypatch.setattr("hybrid_runtime.planner.replan.searched", order)
    file = eight_ranks(pipeline={"schedule": "auto"} | ({"in_flight_limit": 9} if strict else {}))
    again = replan(write_plan(planned, *case()), file, step_costs(planned.staged, *case()))
    plain = [("fractional", False), ("whole", False)]
    assert tried == (plain if strict else [*plain, ("fractional", True), ("whole", True)])
    assert again.schedule == "auto"
