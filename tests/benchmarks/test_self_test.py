"""The self-test, run for real: two ranks, planted steps, blocks of the candidate against itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import self_test


@pytest.mark.ranks
def test_a_quick_repetition_saves_every_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = self_test.main(["--quick", "--save", "--results", str(tmp_path)])
    (file,) = tmp_path.glob("self_test-*.json")
    result = json.loads(file.read_text())
    runs = result["runs"]
    assert [list(run["checks"]) for run in runs] == [
        ["steady_state", "planted_0.5", "planted_1.5", "planted_2", "aa", "observer"]
    ]
    false_alarms = [run for run in runs if run["checks"]["aa"]["outcome"] == "FAIL"]
    assert code == bool(false_alarms)
    assert "| aa " in capsys.readouterr().out
    for run in runs:
        assert all(check["measured"] for name, check in run["checks"].items() if name != "steady_state")
    both = self_test.table_of(result | {"runs": runs * 2})
    found = runs[0]["checks"]["aa"]
    (row,) = [line for line in both.splitlines() if line.startswith("| aa ")]
    counts = [int(cell) for cell in row.split("|")[2:5]]
    assert counts == [2 * (outcome == found["outcome"]) for outcome in self_test.OUTCOMES]
    assert "2 repetitions" in both
