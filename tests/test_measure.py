"""Verifications for real: candidate, declared baseline and others on the same two ranks; the folder judges again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid_runtime.records import AGAINST, PLANTED, SPEED, TRACE, read_side
from hybrid_runtime.run_folder import RunFolder
from tests.commands import command, run, small, write_json

pytestmark = pytest.mark.ranks


def test_other_baselines_are_run_and_shown_and_decide_nothing(tmp_path: Path) -> None:
    """Three heads do not divide by two: the tensor-parallel baseline is impossible and says so."""
    values = small(
        model={"hidden_size": 48, "num_heads": 3, "num_kv_heads": 3, "ffn_size": 33},
        parallel={"pp_degree": 2},
        baseline={"kind": "single", "others": ["single", "dp_only", "tp_only"]},
        targets={"throughput_gain_percent": 10, "memory_balance_pp": 60},
        measurement={"self_test": True},
    )
    folder = RunFolder(tmp_path / "run")
    done = run("verify", write_json(tmp_path / "file.json", values), "--run-folder", folder.path, folder=tmp_path)
    verdict = json.loads(folder.verdict.read_text())
    assert (done.code, "Traceback" in done.err) == (verdict["exit_code"], False), done.err
    others = {row["kind"]: row for row in verdict["other_baselines"]}
    assert set(others) == {"dp_only", "tp_only"}
    assert (others["dp_only"]["resource_matched"], others["tp_only"]["mesh"]) == (True, "not run")
    assert others["dp_only"]["throughput"]["point"] != ""
    assert "baseline_infeasible" in others["tp_only"]["detail"]
    assert any("uses 1 of the candidate's 2 devices" in warning for warning in verdict["warnings"])
    assert [check["id"] for check in verdict["self_test"]][-1] == "numerics"
    assert verdict["self_test"][-1]["outcome"] == "PASS", verdict["self_test"][-1]
    steps = read_side(folder.path)[0].steps
    assert {step.purpose for step in steps} == {TRACE, SPEED, PLANTED, f"{AGAINST}dp_only"}
    assert [step.step for step in steps] == list(range(len(steps)))
    assert all(bool(step.spans) == (step.purpose in (TRACE, PLANTED)) for step in steps)
    for name in ("report.html", "report.md", "junit.xml", "trace.json"):
        assert (folder.path / name).stat().st_size > 1000
    assert command("verify", "--recheck", folder.path).code == done.code
    (folder.other_baseline("dp_only").records / "rank1.jsonl").write_text("")
    again = command("verify", "--recheck", folder.path)
    assert (again.code, "was changed since it was judged" in again.err) == (4, True)


def test_one_rank_has_nothing_to_plant_and_is_tested_all_the_same(tmp_path: Path) -> None:
    values = small(workload={"kind": "forward", "steps": 6}, measurement={"self_test": True, "blocks": 10})
    file = write_json(tmp_path / "file.json", values)
    done = run("verify", file, "--self-test", "--run-folder", tmp_path / "run", folder=tmp_path)
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert (done.code, "Traceback" in done.err) == (verdict["exit_code"], False)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"report.html", "report.md", "junit.xml"}
    assert [check["id"] for check in verdict["self_test"]] == ["steady_state", "aa", "observer"]
    assert verdict["claims"] == []
    assert verdict["sampling"]["stopped"] == "self-test only"
