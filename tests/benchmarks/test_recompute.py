from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.blocks import Timing
from benchmarks.calibrated_plans import write_case
from benchmarks.recompute import KINDS, SCHEDULES, cases_of, judged, table_of, windows_s
from hybrid_runtime.deployment import load_deployment
from hybrid_runtime.planner.candidates import layouts
from hybrid_runtime.planner.layout import Layout
from hybrid_runtime.planner.request import setting_of, space_of

NOISE = (0.99, 1.01, 1.0, 1.005, 0.995, 1.0, 1.01, 0.99)


def found(*, activations_error: float = 0.0, **predicted_ms: int) -> dict[str, dict[str, Any]]:
    """Steps of 100, 110 and 130 ms, in which neighbouring blocks are slow together."""
    measured_s = {"none": 0.1, "selective": 0.11, "full": 0.13}
    rank = {"busy_error": 0.01, "activations": 10**7, "activations_error": activations_error}
    return judged(
        {kind: 10**6 * ms for kind, ms in predicted_ms.items()},
        {kind: [step_s * noise for noise in NOISE] for kind, step_s in measured_s.items()},
        {kind: [rank] for kind in measured_s},
    )


def test_steps_and_what_forgetting_costs_have_goals() -> None:
    cases = found(none=100, selective=103, full=130)
    assert [case["met"] for case in cases.values()] == [True, False, True]
    selective = cases["selective"]
    assert (selective["step"]["verdict"], selective["cost"]["verdict"]) == ("FAIL", "FAIL")
    assert selective["cost"]["error"] == pytest.approx(1.03 / 1.1 - 1)
    assert selective["measured_ratio"] == pytest.approx(1.1)
    assert "-6.36 [-6.36, -6.36] FAIL" in table_of(cases)


def test_a_step_is_not_enough_where_the_ratio_is_off() -> None:
    cases = found(none=103, selective=107, full=127)
    assert [case["step"]["verdict"] for case in cases.values()] == ["PASS"] * 3
    assert cases["full"]["cost"]["verdict"] == "FAIL"
    assert not cases["full"]["met"]


def test_bytes_have_a_goal() -> None:
    assert not any(case["met"] for case in found(none=100, selective=110, full=130, activations_error=-0.06).values())


def test_a_block_is_its_windows_after_settling() -> None:
    def rank(*windows_ms: int) -> Any:
        steps = [SimpleNamespace(start_ns=7, end_ns=7 + 10**6 * window) for window in windows_ms]
        return SimpleNamespace(measured=lambda: steps)

    slowest = [rank(90, 10, 20, 90, 30, 40), rank(90, 12, 18, 90, 30, 50)]
    assert windows_s(slowest, Timing(10, 2, settle_steps=1, block_steps=2)) == [0.016, 0.04]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_case_is_the_same_plan_but_for_what_it_forgets(tmp_path: Path, schedule: str) -> None:
    layouts_found = []
    for values in cases_of(schedule).values():
        file = load_deployment(write_case(tmp_path / "case.json", values, steps=8))
        (layout,) = layouts(space_of(file), setting_of(file))
        assert isinstance(layout, Layout)
        layouts_found.append((layout.schedule, layout.cuts, layout.recompute))
    assert layouts_found == [(schedule, "given", kind) for kind in KINDS]
