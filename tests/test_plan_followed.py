"""A plan that is given is what runs: real ranks follow its lists, and every record carries its fingerprint."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_runtime.records import read_side
from tests.commands import command, environment, run, small, write_json
from tests.planner.test_given import deployed, planned, written

pytestmark = pytest.mark.ranks


def test_the_ranks_follow_the_plan_and_the_baseline_does_not(tmp_path: Path) -> None:
    plan = planned(
        deployed(
            parallel={"pp_degree": 2}, pipeline={"schedule": "zb_h1", "cuts": ["embedding..0.attn", "0.mlp..head"]}
        )
    )
    values = small(baseline={"kind": "naive_pipeline"}, targets={"throughput_gain_percent": 1})
    file, path, folder = write_json(tmp_path / "file.json", values), written(tmp_path, plan), tmp_path / "run"
    done = run("verify", file, "--plan", path, "--run-folder", folder, "--quiet", folder=tmp_path)
    assert done.code in (0, 1, 3), done.err
    assert (folder / "plan.json").read_bytes() == path.read_bytes()
    ranks = read_side(folder)
    assert {rank.header.plan_fingerprint for rank in ranks} == {hashlib.sha256(path.read_bytes()).hexdigest()}
    measured = next(ranks[1].measured())
    assert {span.name[1] for span in measured.spans} >= set("FIW")
    baseline = json.loads((folder / "baseline" / "plan.json").read_text())
    assert (baseline["schedule"], baseline["num_microbatches"]) == ("gpipe", 1)
    assert command("verify", "--recheck", folder).code == done.code


def test_plain_torchrun_follows_it_too(tmp_path: Path) -> None:
    plan = planned(deployed(parallel={"pp_degree": 2}))
    file, path = write_json(tmp_path / "file.json", small()), written(tmp_path, plan)
    job = ["-m", "hybrid_runtime.job", str(file), "--plan", str(path), "--run-folder", str(tmp_path / "run"), "--quiet"]
    for ranks, code in ((1, 1), (2, 0)):
        command_line = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            *job,
        ]
        done = subprocess.run(command_line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=90)
        assert done.returncode == code, done.stderr
        assert ("needs 2 ranks, torchrun started 1" in done.stderr) == (ranks == 1)
    assert (tmp_path / "run" / "plan.json").read_bytes() == path.read_bytes()
