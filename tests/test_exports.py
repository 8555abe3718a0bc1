"""Real runs of two ranks that write TensorBoard and Prometheus files, by the command and by plain torchrun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_runtime.records import PLANTED, read_side
from hybrid_runtime.report.progress import ProgressTail
from hybrid_runtime.run_folder import RunFolder
from tests.commands import command, environment, run, small, write_json
from tests.report.test_prometheus_textfile import found, parsed
from tests.report.test_tensorboard_scalars import read_back

pytestmark = pytest.mark.ranks


def test_verify_exports_both_sides_and_the_verdict(tmp_path: Path) -> None:
    textfile, folder = tmp_path / "textfile", tmp_path / "run"
    textfile.mkdir()
    values = small(
        parallel={"tp_degree": 2},
        baseline={"kind": "single"},
        targets={"memory_balance_pp": 1},
        measurement={"self_test": True},
        telemetry={"tensorboard": True, "prometheus_textfile": "overruled by the command line"},
    )
    done = run(
        "verify", write_json(tmp_path / "file.json", values), "--run-folder", folder, "--prometheus", textfile,
        folder=tmp_path,
    )  # fmt: skip
    assert done.code in (0, 1, 3), done.err
    candidate, baseline = (read_back(folder / "tensorboard" / side) for side in ("candidate", "baseline"))
    records = read_side(folder)
    for tags, side in ((candidate, records), (baseline, read_side(folder / "baseline"))):
        steps = [step for step in side[0].steps if step.purpose != PLANTED]
        assert [step for step, _ in tags["run/loss"]] == [step.step + 1 for step in steps]
        norms = [float(step.grad_norm or "nan") for step in steps]
        assert [value for _, value in tags["run/grad_norm"]] == pytest.approx(norms)
        losses = [float(rank.steps[-1].loss) for rank in side if rank.steps[-1].loss is not None]
        assert tags["run/loss"][-1][1] == pytest.approx(losses[0])
    assert {tag for tag in candidate if "rank" in tag} == {
        f"{what}/rank{rank}" for what in ("busy_share", "wait_share", "memory_bytes") for rank in (0, 1)
    }
    watched = [step.memory.ledger_peak for step in records[1].steps if step.memory.ledger_peak]
    assert candidate["memory_bytes/rank1"][-1][1] == watched[-1]
    (file,) = textfile.iterdir()
    samples = parsed(file.read_text())
    assert found(samples, "run_active", run="run", deployment="small") == [0]
    assert found(samples, "claim_outcome", run="run", claim="memory_balance") == [1]
    assert found(samples, "steps_total", side="candidate") == [len(records[0].steps)]
    assert command("verify", "--recheck", folder).code == done.code


def test_plain_torchrun_exports_by_rank_0(tmp_path: Path) -> None:
    (tmp_path / "textfile").mkdir()
    telemetry = {"tensorboard": "events", "prometheus_textfile": "textfile"}
    file = write_json(tmp_path / "file.json", small(parallel={"pp_degree": 2}, telemetry=telemetry))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = ["-m", "hybrid_runtime.job", str(file), "--run-folder", "run", "--quiet"]
    done = subprocess.run(
        [*torchrun, *job], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    scalars = read_back(tmp_path / "events/run/candidate")
    assert [step for step, _ in scalars["run/step_time_s"]] == [1, 2, 3, 4, 5, 6]
    assert scalars["busy_share/rank1"][0][0] == 1
    (written,) = (tmp_path / "textfile").iterdir()
    samples = parsed(written.read_text())
    assert found(samples, "steps_total") == [6]
    assert found(samples, "run_end_timestamp_seconds", result="finished")
    lines = ProgressTail(RunFolder(tmp_path / "run").progress).read_new()
    assert [len(line.ranks) + line.left_out for line in lines] == [2] * 6
    assert max(load.memory_bytes or 0 for line in lines for load in line.ranks) > 1000
