"""A plan is solved again with what its stages took."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.analytic import AnalyticCosts, kind_of
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.given import resolved
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.planner.network import FreeNetwork
from hybrid_runtime.planner.recorded import unit_times
from hybrid_runtime.planner.replan import balance_moved, replan, replan_rehearsed
from hybrid_runtime.planner.request import rates_of
from hybrid_runtime.planner.work import Line
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.step_costs import StepCosts
from tests.planner.planning import SHARES, UNIT_US, deployment
from tests.rehearsals import deployed, plan_of, rehearsal

FILE = deployment(pipeline={"schedule": "zb_v"})


def hand_made() -> Plan:
    assert FILE.shape is not None
    return make_plan(FILE, unit_costs(FILE.shape, microbatch_size=1, sequence_length=64, workload="train"))


def line() -> Line:
    assert FILE.shape is not None
    return AnalyticCosts(FILE.shape, 64, "float32", "train", False, rates_of(FILE)).line(2, 1)


def share_of(name: str, plan: Plan) -> tuple[str, Fraction]:
    from hybrid_runtime.pieces import read_piece

    parts = {cost.name: cost.parts for cost in plan.units}
    piece = read_piece(name)
    return (name, Fraction(1)) if piece is None else (piece.unit, Fraction(piece.parts, parts[piece.unit]))


def taken(plan: Plan) -> StepCosts:
    """What a run of the plan would record if units took UNIT_US."""
    durations = {}
    for stage in plan.stages:
        shares = [share_of(name, plan) for name in stage.units]
        us = sum(float(share) * UNIT_US[kind_of(unit)] / 2 for unit, share in shares)
        for kind in ("F", "I", "W"):
            durations[stage.index, Kind(kind)] = int(1000 * us * SHARES[kind])
    return StepCosts(durations)


def compute_range(plan: Plan) -> float:
    """Share range of the true compute times over six devices, in percentage points."""
    costs = taken(plan)
    loads = [
        sum(
            int(costs.compute(stage.index, kind)) for stage in plan.stages_of(rank) for kind in (Kind.F, Kind.I, Kind.W)
        )
        for rank in range(plan.pp_degree)
    ]
    return 100 * (max(loads) - min(loads)) / (2 * sum(loads))


def test_it_balances_what_was_measured() -> None:
    plan = hand_made()
    again = replan(plan, FILE, taken(plan))
    assert compute_range(plan) > 0.5
    assert compute_range(again) < 0.25
    third = replan(again, resolved(FILE, again, "test"), taken(again))
    assert compute_range(third) < 0.1
    assert (again.mesh, again.schedule, again.num_microbatches) == (plan.mesh, plan.schedule, plan.num_microbatches)
    assert again.predicted is not None
    assert again.predicted.source == "records"


def test_equal_records_give_equal_plans() -> None:
    plan = hand_made()
    assert replan(plan, FILE, taken(plan)).fingerprint == replan(plan, FILE, taken(plan)).fingerprint


def test_stage_sums_are_kept() -> None:
    plan, costs = hand_made(), taken(hand_made())
    for kind in (Kind.F, Kind.I, Kind.W):
        times = unit_times(plan, line(), costs)[kind]
        for stage in plan.stages:
            assert sum(times[name] for name in stage.units) == pytest.approx(int(costs.compute(stage.index, kind)))
    times = unit_times(plan, line(), costs)[Kind.F]
    assert times["3.attn"] == pytest.approx(1000 * UNIT_US["attn"] / 2 * SHARES["F"], rel=0.1)


def test_memory_that_was_not_foreseen_moves_rows() -> None:
    plan = replan(hand_made(), FILE, taken(hand_made()))
    sharded = plan.model_copy(
        update={"embedding_pieces": ("embedding[0:128]", "embedding[128:256]", "embedding[256:384]")}
    )
    peaks = [9_000_000, 8_000_000, 8_000_000]
    again = replan(sharded, FILE, taken(plan), peaks)
    assert again.embedding_pieces[0] == "" or again.embedding_pieces[0].endswith(":2]")
    with pytest.raises(PlanError, match="2 memory peaks are given for 3 pipeline ranks"):
        replan(sharded, FILE, taken(plan), peaks[:2])


def test_whole_units_only() -> None:
    again = replan(hand_made(), FILE, taken(hand_made()), pieces=False)
    assert not any("[" in name for stage in again.stages for name in stage.units)
    with pytest.raises(PlanError, match="no forward of stage 0 was measured"):
        replan(hand_made(), FILE, StepCosts({}))


def test_a_rehearsal_is_planned_again() -> None:
    """Stage 1 took half as much again: it gives units away, and the new plan says what it was made from."""
    file = deployed(model={"preset": "tiny", "num_layers": 9}, parallel={"pp_degree": 3})
    before = plan_of(file)
    lone = rehearsal(before, (1000, 1500, 1000), (90_000_000, 80_000_000, 80_000_000))
    after = replan_rehearsed(before, file, lone, FreeNetwork())
    assert after.predicted is not None
    assert (after.predicted.source, after.predicted.fingerprint) == ("rehearsal", lone.fingerprint)
    assert after.predicted.labels["compute"] == "rehearsed"
    assert after.predicted.ranks[0].time.optimizer_ns > 0
    assert after.predicted.ranks[0].memory.ledger_peak > 80_000_000
    flops = [plan.prediction.stage_flops[1] for plan in (before, after)]
    assert flops[1] < flops[0]
    said = balance_moved(lone, before, after)
    assert "new cuts" in said
    assert "rehearse the new plan" in said
    assert "settled" in balance_moved(rehearsal(after, (1000, 1000, 1000), (1, 1, 1)), after, after)
