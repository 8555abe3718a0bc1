"""A plan that is given is what runs: real ranks follow its lists, and every record carries its fingerprint."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hybrid_runtime.plan import read_plan
from hybrid_runtime.records import read_side
from hybrid_runtime.run_folder import RunFolder
from tests.commands import command, run, small, write_json
from tests.planner.test_given import deployed, planned, written

pytestmark = pytest.mark.ranks


def test_the_ranks_follow_the_plan(tmp_path: Path) -> None:
    """The command gives its ranks the plan as anybody can under plain torchrun: `hybrid_runtime.job FILE --plan P`."""
    layout = {"schedule": "zb_h1", "cuts": ["embedding..0.attn", "0.mlp..head"]}
    path = written(tmp_path, planned(deployed(parallel={"pp_degree": 2}, pipeline=layout)))
    file, folder = write_json(tmp_path / "file.json", small()), tmp_path / "run"
    done = run("run", file, "--plan", path, "--run-folder", folder, "--quiet", folder=tmp_path)
    assert done.code in (0, 1, 3), done.err
    assert (folder / "plan.json").read_bytes() == path.read_bytes()
    ranks = read_side(folder)
    assert {rank.header.plan_fingerprint for rank in ranks} == {hashlib.sha256(path.read_bytes()).hexdigest()}
    assert f"--plan {folder / 'plan.json'}" in ranks[0].header.launch["command"]
    assert {span.name[1] for span in next(ranks[1].measured()).spans} >= set("FIW")
    assert command("verify", "--recheck", folder).code == done.code


def test_a_planned_step_with_rows_and_pieces_runs(tmp_path: Path) -> None:
    """Two stages per rank, one cut inside a unit, rows on both ranks: planned by formula, run, bytes as predicted."""
    cuts = ["embedding..0.mlp[:8]", "0.mlp[8:]..1.attn", "1.mlp", "head"]
    values = small(
        model={"vocab_size": 256},
        parallel={"pp_degree": 2},
        pipeline={"schedule": "zb_v", "cuts": cuts, "embedding_rows": [192, 64]},
        search={"vary": []},
    )
    file, path, folder = write_json(tmp_path / "file.json", values), tmp_path / "plan.json", tmp_path / "run"
    assert command("plan", file, "--analytic", "--out", path, "-q").code == 0
    plan = read_plan(path)
    assert plan.embedding_pieces == ("embedding[0:192]", "embedding[192:256]")
    assert [name for stage in plan.stages for name in stage.units if "[" in name] == ["0.mlp[0:8]", "0.mlp[8:32]"]
    assert all("EF0" in " ".join(actions) and "EB0" in " ".join(actions) for actions in plan.actions)
    done = run("run", file, "--plan", path, "--run-folder", folder, "--quiet", folder=tmp_path)
    assert done.code in (0, 1, 3), done.err
    assert plan.predicted is not None
    for rank in read_side(folder):
        held = max(step.memory.ledger_peak or 0 for step in rank.steps)
        assert plan.predicted.ranks[rank.header.pp].memory.ledger_peak == pytest.approx(held, rel=0.01)


def test_a_measured_imbalance_is_cut_away_and_both_runs_are_kept(tmp_path: Path) -> None:
    """Eleven of fourteen units on the first rank: whatever the clock's noise, the records ask for another cut."""
    values = small(
        model={"num_layers": 6},
        parallel={"pp_degree": 2},
        pipeline={"cuts": ["embedding..4.mlp", "5.attn..head"]},
        targets={"compute_balance_pp": 100, "memory_balance_pp": 100},
    )
    file, folder = write_json(tmp_path / "file.json", values), RunFolder(tmp_path / "run")
    done = run("verify", file, "--rebalance", "--run-folder", folder.path, "--quiet", folder=tmp_path)
    assert done.code in (0, 1, 3), done.err
    assert "stages of pp rank 0" in done.out
    held = [len(read_plan(one.plan).stages[0].units) for one in (folder, folder.rebalanced)]
    assert held[0] == 11
    assert held[1] < 11
    assert folder.comparison.stat().st_size > 1000
    for one in (folder, folder.rebalanced):
        assert command("verify", "--recheck", one.path).code in (0, 1, 3)
    refused = command("verify", "--recheck", folder.path, "--rebalance")
    assert (refused.code, "--recheck runs nothing" in refused.err) == (2, True)
