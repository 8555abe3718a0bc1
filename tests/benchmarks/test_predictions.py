from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.calibrated_plans import write_case
from benchmarks.predictions import CASES, summary, table_of
from hybrid_runtime.deployment import load_deployment
from hybrid_runtime.planner.candidates import layouts
from hybrid_runtime.planner.layout import Layout
from hybrid_runtime.planner.request import setting_of, space_of


def case(predicted_ms: int, *measured_ms: int, bytes_error: float = 0.0, why: str = "") -> dict[str, Any]:
    mean = sum(measured_ms) / len(measured_ms)
    return {
        "predicted_ns": predicted_ms * 10**6,
        "measured_ns": [one * 10**6 for one in measured_ms],
        "error": predicted_ms / mean - 1,
        "inside": [True, False],
        "bytes_errors": [bytes_error],
        "budgets": [[], []],
        "disturbed": ["", why],
    }


def test_errors_regret_and_disturbed_runs_are_told() -> None:
    cases = {"1f1b": case(100, 104, 106), "zb_h1": case(102, 99, 101, bytes_error=-0.012, why="others; more")}
    found = summary(cases)
    assert (found["chosen"], found["fastest"]) == ("1f1b", "zb_h1")
    assert found["regret"] == 105 / 100 - 1
    assert found["met"] == {"median": False, "worst": True, "memory": False, "regret": False}
    table = table_of({"cases": cases, "summary": found})
    assert "regret 5.00 % (chosen 1f1b, fastest zb_h1)" in table
    assert table.endswith("- zb_h1, run 2: others")


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_one_layout_as_it_says(tmp_path: Path, name: str) -> None:
    file = load_deployment(write_case(tmp_path / "case.json", CASES[name], steps=8))
    (layout,) = layouts(space_of(file), setting_of(file))
    assert isinstance(layout, Layout)
    assert layout.schedule == file.pipeline.schedule
    assert (layout.cuts == "given") == (not isinstance(file.pipeline.cuts, str))
    assert (layout.rows is None) == (file.pipeline.embedding_rows is None)
