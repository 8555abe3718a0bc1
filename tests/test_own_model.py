"""A user's own model, and the forward workload, deployed with two stages: run, judged, and it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid_runtime.verifier.judge import read_verdict
from tests.commands import command, run, small, write_json

pytestmark = pytest.mark.ranks
TARGETS = {"compute_balance_pp": 90, "compute_balance_metric": "work_share_range", "memory_balance_pp": 90}


def test_ones_own_model_is_deployed_and_judged(tmp_path: Path) -> None:
    values = small(
        parallel={"pp_degree": 2}, batch={"global_batch_size": 8, "sequence_length": 64}, workload={"steps": 30},
        optimizer={"learning_rate": "0.01"}, targets=TARGETS,
    )  # fmt: skip
    values |= {"model": {"units": "tests.own_model:units", "options": {"width": 32}}}
    file = write_json(tmp_path / "file.json", values)
    assert command("check", file).code == 3, "the file alone cannot know the units"

    done = run("run", file, "--run-folder", tmp_path / "run", "--json", "-", folder=tmp_path)
    verdict = read_verdict(tmp_path / "run" / "verdict.json")
    assert json.loads(done.out) == verdict.model_dump(mode="json"), "stdout is JSON and nothing else"
    assert "PASS: small: " in done.err, "the tables are on stderr"
    assert done.code == verdict.exit_code == 0, done
    assert {claim.id for claim in verdict.claims} == {"compute_balance", "memory_balance"}
    cover = next(row for row in verdict.static_checks if row.id == "stage_cover")
    assert (cover.outcome, cover.detail) == ("PASS", "5 units: embedding..1.block | 2.block..head")
    first, last = float(verdict.sides[0].first_loss or 0), float(verdict.sides[0].last_loss or 0)
    assert 5 < first < 6
    assert last < first - 1.5


def test_the_forward_workload_runs_and_is_judged(tmp_path: Path) -> None:
    values = small(parallel={"pp_degree": 2}, workload={"kind": "forward", "steps": 8}, targets=TARGETS)
    done = run("run", write_json(tmp_path / "file.json", values), "--run-folder", tmp_path / "run", folder=tmp_path)
    verdict = read_verdict(tmp_path / "run" / "verdict.json")
    assert done.code == verdict.exit_code, done
    assert {claim.id: claim.outcome for claim in verdict.claims} == {
        "compute_balance": "PASS",
        "memory_balance": "PASS",
    }
    side = verdict.sides[0]
    assert (side.steps_warmup, side.steps_measured) == (4, 4)
    assert 5 < float(side.last_loss or 0) < 6, "a loss is known, and nothing is learnt"
    assert all(row.memory_parts.get("gradients", 0) == 0 for row in verdict.devices)
