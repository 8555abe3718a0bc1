"""The benchmark of the automatic scheduler: its smallest case meets its goal, and what it saves is complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.auto import main


def test_quick_run_meets_its_goal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--quick", "--save", "--results", str(tmp_path / "results")])
    (file,) = (tmp_path / "results").glob("auto-*.json")
    result = json.loads(file.read_text())
    case = result["cases"]["p3"]
    assert (code == 0) == case["met"]
    assert case["bubble"] <= case["goal_bubble"]
    assert case["bound_bubble"] <= case["bubble"] < min(case["portfolio"].values())
    assert len(set(case["peak_microbatches"])) == 1
    assert case["peak_microbatches"][0] <= 4
    assert result["replay_actions_per_s"] > 0
    assert "p=3, m=8" in capsys.readouterr().out
