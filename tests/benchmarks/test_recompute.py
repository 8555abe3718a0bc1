from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.planned_runs import write_case
from benchmarks.recompute import KINDS, SCHEDULES, cases_of, table_of, with_ratios
from hybrid_runtime.deployment import load_deployment
from hybrid_runtime.planner.candidates import layouts
from hybrid_runtime.planner.layout import Layout
from hybrid_runtime.planner.request import setting_of, space_of


def case(predicted_ms: int, *measured_ms: int, activations_error: float = 0.0) -> dict[str, Any]:
    return {
        "predicted_ns": predicted_ms * 10**6,
        "measured_ns": [one * 10**6 for one in measured_ms],
        "error": predicted_ms * len(measured_ms) / sum(measured_ms) - 1,
        "inside": [True, True],
        "busy_errors": [["+1.0", "-1.0"]],
        "activations": [10**7, 10**6],
        "activations_errors": [activations_error, 0.0],
        "disturbed": ["", ""],
    }


def test_steps_bytes_and_what_forgetting_costs_have_goals() -> None:
    found = with_ratios(
        {
            "1f1b, none": case(104, 100, 100),
            "1f1b, selective": case(105, 110, 110),
            "1f1b, full": case(130, 130, 130, activations_error=0.06),
        }
    )
    assert [each["met"] for each in found.values()] == [True, False, False]
    assert found["1f1b, selective"]["measured_ratio"] == 1.1
    assert found["1f1b, selective"]["ratio_error"] == pytest.approx(105 / 104 / 1.1 - 1)
    assert "+6.000 %" in table_of(found)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_case_is_the_same_plan_but_for_what_it_forgets(tmp_path: Path, schedule: str) -> None:
    found = []
    for kind, values in cases_of(schedule).items():
        file = load_deployment(write_case(tmp_path / "case.json", values, steps=8))
        (layout,) = layouts(space_of(file), setting_of(file))
        assert isinstance(layout, Layout)
        found.append((layout.schedule, layout.cuts, setting_of(file).recomputes, kind))
    assert found == [(schedule, "given", (kind,), kind) for kind in KINDS]
