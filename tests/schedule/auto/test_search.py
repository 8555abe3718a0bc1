"""The automatic scheduler finds known optima, keeps its promises, and says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.auto.search import Progress, SearchResult, search
from hybrid_runtime.schedule.check import check
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.placement import linear, loop, v_shape
from hybrid_runtime.schedule.replay import replay_step
from hybrid_runtime.schedule.step_costs import Hop, StepCosts, activation_bytes
from tests.schedule.auto.cases import v_costs


def percent(bubble: Fraction) -> str:
    return f"{float(100 * bubble):.2f}"


def is_sound(result: SearchResult, costs: StepCosts, num_microbatches: int, limit: int | None) -> None:
    """Checked, replayed, within the limit, not below the bound, not behind the portfolio."""
    lowered = lower(result.lists, result.stage_to_rank)
    assert not check(lowered, result.stage_to_rank, num_microbatches, "train").findings
    step = replay_step(result.lists, result.stage_to_rank, costs)
    assert (step.makespan, step.bubble) == (result.best.makespan, result.best.bubble)
    assert tuple(peak.num_bytes for peak in step.peaks) == result.best.peak_bytes
    assert limit is None or max(result.best.peak_bytes) <= limit
    assert result.bound <= result.best.makespan
    assert all(result.best.makespan <= known.makespan for known in result.portfolio if known.fits)
    assert list(result.portfolio) == sorted(result.portfolio, key=lambda known: known.makespan)


def test_three_ranks_reach_the_bound() -> None:
    seen: list[Progress] = []
    costs = v_costs(3)
    result = search(3, 8, costs, 8, progress=seen.append)
    is_sound(result, costs, 8, 8)
    assert result.best.makespan == result.bound == Fraction("24.4") + 2 * Fraction("0.52")
    assert percent(result.bound_bubble) == percent(result.best.bubble) == "4.09"
    assert len(set(result.best.peak_bytes)) == 1
    assert result.complete
    known = {schedule.name: percent(schedule.bubble) for schedule in result.portfolio}
    assert (known["zb_v"], known["greedy"]) == ("5.10", "4.98")
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].bubble == pytest.approx(seen[-1].bound_bubble) == pytest.approx(float(result.bound_bubble))


def test_a_seed_gives_one_result() -> None:
    costs = v_costs(4)
    first, again, other = (search(4, 8, costs, 8, seed) for seed in (1, 1, 2))
    assert first.lists == again.lists
    assert first.best == again.best
    for result in (first, other):
        assert result.complete
        is_sound(result, costs, 8, 8)
        assert len(set(result.best.peak_bytes)) == 1
    assert first.best.makespan < min(known.makespan for known in first.portfolio if known.fits)


@pytest.mark.parametrize(
    ("costs", "limit"),
    [
        (v_costs(2), None),
        (v_costs(2, Hop(Fraction(1, 50), bandwidth=100)), 6),
        (v_costs(2, Hop(Fraction(1, 50), bandwidth=100, blocking=True)), 6),
        (v_costs(3, shares=("1", "0.2", "3"), first_chunk="0.3"), 7),
        (v_costs(3), 4),  # less than a microbatch per rank: only v_half and v_min fit
        (v_costs(1), 2),
        (v_costs(2, Hop(), shares=("0", "0", "0")), 6),
    ],
)
def test_all_kinds_of_costs(costs: StepCosts, limit: int | None) -> None:
    pp_degree = len(costs.action_bytes.kept) // 2
    is_sound(search(pp_degree, 5, costs, limit), costs, 5, limit)


@pytest.mark.parametrize("placement", [linear(3), loop(3, 2), v_shape(3, 3), (2, 0, 1, 0)])
def test_any_placement(placement: tuple[int, ...]) -> None:
    durations = {(k, kind): 10 + k for k in range(len(placement)) for kind in (Kind.F, Kind.I, Kind.W)}
    costs = StepCosts(durations, hop=Hop(1), action_bytes=activation_bytes([1] * len(placement)))
    result = search(3, 6, costs, stage_to_rank=placement)
    is_sound(result, costs, 6, None)
    assert result.stage_to_rank == placement


def test_a_fused_backward_that_is_cheaper_may_win() -> None:
    costs = v_costs(2)
    cheap = {(k, Kind.B): Fraction("0.7") for k in range(4)}
    costs = StepCosts({**costs.durations, **cheap}, action_bytes=costs.action_bytes)
    result = search(2, 8, costs, 6)
    is_sound(result, costs, 8, 6)
    assert result.best.name == "dualpipe_v"


def test_times_of_any_size() -> None:
    small = search(2, 5, v_costs(2), 5)
    costs = v_costs(2)
    huge = {key: time * 10**25 for key, time in costs.durations.items()}
    result = search(2, 5, StepCosts(huge, hop=Hop(2 * 10**23), action_bytes=costs.action_bytes), 5)
    assert result.best.makespan == small.best.makespan * 10**25
    assert result.bound <= small.bound * 10**25


def test_an_ended_budget_still_gives_a_schedule() -> None:
    costs = v_costs(4)
    result = search(4, 12, costs, 8, budget_s=0.0)
    assert not result.complete
    is_sound(result, costs, 12, 8)


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(PlanError, match=r"no schedule fits \[8, 1, 8\] bytes .* alone keeps \[2, 2, 2\]: raise"):
        search(3, 8, v_costs(3), [8, 1, 8])
    with pytest.raises(PlanError, match="3 pipeline ranks and 2 limits"):
        search(3, 8, v_costs(3), [8, 8])
    with pytest.raises(PlanError, match="at least 1 rank and 1 microbatch, not 3 and 0"):
        search(3, 0, v_costs(3))
    with pytest.raises(PlanError, match="no duration is given for F of stage 6"):
        search(4, 8, v_costs(3))
    with pytest.raises(PlanError, match="does not give every one of 3"):
        search(3, 8, v_costs(3), stage_to_rank=(0, 1, 1, 0))


def test_without_numba_the_same_loops_run_as_python() -> None:
    code = """
import sys
sys.modules["numba"] = None
from hybrid_runtime.schedule import replay

from hybrid_runtime.schedule.auto.search import search
from hybrid_runtime.schedule.compiled import COMPILED
from tests.schedule.auto.cases import v_costs
assert not COMPILED
replay.COMPILED_FROM = 0
result = search(2, 3, v_costs(2), 6)
print(result.best.makespan)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(search(2, 3, v_costs(2), 6).best.makespan)
