"""`rehearse` and `calibrate` as commands: what they write and say, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybrid_runtime import cli_lone
from hybrid_runtime.calibration import model_hash, read_calibration
from hybrid_runtime.deployment import load_deployment
from hybrid_runtime.errors import Stopped
from hybrid_runtime.plan import read_plan
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.rehearsal import FILE, read_rehearsal
from hybrid_runtime.stop_signals import signals_stop
from tests.commands import command, run, small, write_json

pytestmark = pytest.mark.alone

TARGETS = {"compute_balance_pp": 1, "memory_balance_pp": 1, "utilisation_percent": 90, "latency_reduction_percent": 10}


def deployment_file(folder: Path, **tables: Any) -> Path:
    return write_json(folder / "job.json", small(parallel={"pp_degree": 2}, **tables))


def test_a_process_is_ended_when_a_stop_comes_while_it_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def start(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        signal.raise_signal(signal.SIGINT)
        begun.append(subprocess.Popen(["sleep", "60"]))
        return begun[0]

    monkeypatch.setattr(cli_lone, "subprocess", SimpleNamespace(Popen=start))
    with pytest.raises(Stopped, match="SIGINT"), signals_stop():
        cli_lone._torch("hybrid_runtime.lone.rehearse", [], quiet=True)
    assert begun[0].returncode == -signal.SIGTERM


def test_rehearse_then_judge_again(tmp_path: Path) -> None:
    """Two stages and their baseline; the folder says the same when it is read again, and is no run."""
    file = deployment_file(tmp_path, targets=TARGETS, baseline={"kind": "naive_pipeline"})
    said = run("rehearse", file, "--run-folder", "out", "--json", "out.json", "--quiet", folder=tmp_path)
    assert said.code in (1, 3), said
    assert not re.search(r"(?<!WOULD )\b(PASS|FAIL)\b", said.out), said.out
    verdict = json.loads((tmp_path / "out.json").read_text())
    assert [claim["id"] for claim in verdict["claims"]] == [
        "compute_balance", "memory_balance", "utilisation", "latency_reduction",
    ]  # fmt: skip
    assert {claim["outcome"] for claim in verdict["claims"]} <= {"WOULD PASS", "WOULD FAIL", "UNDECIDED"}
    assert verdict["baseline_ns"] > 0
    lone, plan = read_rehearsal(tmp_path / "out" / FILE), read_plan(tmp_path / "out/plan.json")
    assert lone.plan_fingerprint == plan.fingerprint
    assert "company: 1 companion (the other 1 of 2 ranks)" in said.out
    assert lone.order[:4] == (0, 1, 1, 0)
    assert (lone.company.processes, lone.company.why) == (1, "the other 1 of 2 ranks")
    assert len(lone.ranks[0].steps) >= 12
    assert lone.ranks[0].memory[0] == lone.ranks[0].memory[1]
    again = command("rehearse", tmp_path / "out")
    assert (again.code, again.out.splitlines()[:-1]) == (said.code, said.out.splitlines()[:-1])
    assert command("rehearse", file, "--run-folder", tmp_path / "out").code == 2
    assert command("verify", "--recheck", tmp_path / "out").code == 4  # there are no records to judge


def test_rehearse_follows_a_plan_and_refuses_another_models(tmp_path: Path) -> None:
    file = deployment_file(tmp_path)
    assert run("rehearse", file, "--alone", "--run-folder", "own", "--quiet", folder=tmp_path).code == 0
    assert read_rehearsal(tmp_path / "own" / FILE).company.why == "--alone"
    plan = tmp_path / "own/plan.json"
    other = small(parallel={"pp_degree": 2}, model={"hidden_size": 64})
    write_json(tmp_path / "other.json", other)
    said = run("rehearse", "other.json", "--plan", plan, "--run-folder", "no", "--quiet", folder=tmp_path)
    assert said.code == 2
    assert re.search(r"plan for (another model|other work)", said.err)
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("name", ["rehearse", "calibrate"])
def test_without_a_batch(name: str, tmp_path: Path) -> None:
    file = write_json(tmp_path / "job.json", small(batch=None))
    more = ["--run-folder", "out"] if name == "rehearse" else ["--out", "out.json"]
    said = run(name, file, *more, "--quiet", folder=tmp_path)
    assert said.code == 2
    assert "needs the table(s) batch; add them" in said.err
    assert not (tmp_path / "out").exists()


def test_a_rank_that_does_not_fit(tmp_path: Path) -> None:
    """Said before memory is filled: this one would take terabytes."""
    huge = {"hidden_size": 65536, "ffn_size": 262144, "num_heads": 64, "num_layers": 100}
    file = write_json(tmp_path / "job.json", small(parallel={"pp_degree": 2}, model={"preset": "tiny", **huge}))
    said = run("rehearse", file, "--run-folder", "out", "--quiet", folder=tmp_path)
    assert said.code == 4
    assert "pipeline rank 0 of small does not fit on cpu with" in said.err
    assert said.err.count("\n") == 1


def test_calibrate_then_rehearse_with_it(tmp_path: Path) -> None:
    file = deployment_file(tmp_path)
    said = run("calibrate", file, "--out", "calibration.json", "--quiet", folder=tmp_path)
    assert said.code == 0, said
    found, deployment = read_calibration(tmp_path / "calibration.json"), load_deployment(file)
    assert deployment.shape is not None
    costs = unit_costs(deployment.shape, microbatch_size=1, sequence_length=16, workload="train")
    assert found.model == model_hash(costs)
    assert {row.unit for row in found.units} == {"embedding", "attn", "mlp", "head"}
    assert {(row.tp_degree, row.microbatch_size) for row in found.units} == {
        (1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4),
    }  # fmt: skip
    assert found.company.processes == 1
    assert {row.parts for row in found.units if row.unit == "mlp" and row.tp_degree == 2} == {8, 16, 24, 32}
    whole = next(row for row in found.units if (row.unit, row.parts, row.tp_degree) == ("mlp", 32, 1))
    half = next(row for row in found.units if (row.unit, row.parts, row.tp_degree) == ("mlp", 16, 1))
    assert half.parameters < whole.parameters
    assert half.saved_bytes < whole.saved_bytes
    assert 0 < whole.until_w_bytes <= whole.saved_bytes + whole.output_bytes
    assert min(whole.forward.p50_ns, whole.input_grad.p50_ns, whole.weight_grad.p50_ns, found.action_ns) > 0
    assert (found.optimizer_bytes_per_parameter, found.gradient_bytes_per_parameter) == (8, 4)
    assert "between hosts" in found.not_measured
    assert found.collectives or "all_reduce of 2 ranks" in found.not_measured
    assert "messages" in found.not_measured or max(message.post_ns for message in found.messages) > 0
    done = run(
        "rehearse",
        file,
        "--alone",
        "--calibration",
        "calibration.json",
        "--run-folder",
        "out",
        "--quiet",
        folder=tmp_path,
    )
    assert done.code == 0, done
    assert "communication, modelled: calibration.json" in done.out


def test_unwritable_targets_are_said_first(tmp_path: Path) -> None:
    file = deployment_file(tmp_path)
    assert "--out" in command("calibrate", file, "--out", tmp_path / "no/c.json").err
    assert "--json" in command("rehearse", file, "--json", tmp_path / "no/r.json").err
    assert command("rehearse", file, "--calibration", tmp_path / "none.json").code == 2
    said = command("calibrate", file, "--out", "/proc/calibration.json")  # where permissions say that it can be
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "--out /proc/calibration.json: cannot be written" in said.err


@pytest.mark.parametrize("name", ["rehearse", "calibrate"])
def test_sizes_that_do_not_fit_are_said_before_anything_is_measured(name: str, tmp_path: Path) -> None:
    file = deployment_file(tmp_path, model={"hidden_size": 36, "num_heads": 12})
    said = command(name, file)  # in this very process: torch is not even started
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "check model_shape fails: " in said.err
    assert "head_dim 3 is odd, but rotary positions turn pairs; set an even head_dim" in said.err


def test_a_folder_that_nobody_rehearsed_into(tmp_path: Path) -> None:
    said = command("rehearse", tmp_path)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "holds no rehearsal.json; name a folder that rehearse wrote" in said.err
