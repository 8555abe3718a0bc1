"""Weights & Biases, against a stand-in of the same interface."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.report.exports import Exports, open_exports
from hybrid_runtime.report.figures import scalars
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.report.wandb_run import WandbRun
from hybrid_runtime.run_folder import RunFolder
from tests.commands import command, small, write_json
from tests.report import fake_wandb
from tests.report.examples import verdict
from tests.report.running import line, load


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_DIR", raising=False)


def deployment(**telemetry: object) -> Deployment:
    return parse_deployment(small() | {"telemetry": telemetry}, source="test")


def test_every_figure_goes_to_one_run_with_a_step_per_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, folder = fake_wandb.install(monkeypatch), RunFolder(tmp_path / "run-1")
    roster, step = Roster(folder), line(3, trained_before=40, mfu=0.4, ranks=(load(0), load(5)))
    with open_exports(deployment(wandb="my project"), folder, first=True) as exports:
        exports.show(step, roster)
        exports.show(line(1, side="baseline"), roster)
        exports.show(line(4, phase="planted"), roster)
        exports.flush()
        exports.judged(verdict())
    (run,) = runs
    assert {name: run.settings[name] for name in ("project", "name", "group", "dir")} == {
        "project": "my project", "name": "run-1", "group": "small", "dir": str(tmp_path / "run-1"),
    }  # fmt: skip
    assert run.settings["config"]["batch"]["global_batch_size"] == 4
    assert run.metrics == {"candidate/*": "candidate/step", "baseline/*": "baseline/step"}
    first, second = run.logged
    assert first == {"candidate/step": 43} | {f"candidate/{tag}": value for tag, value in scalars(step)}
    assert first["candidate/busy_share/rank5"] == 0.55
    assert second["baseline/step"] == 1
    assert run.summary["verdict"] == verdict().verdict.value
    assert len(run.summary) == 1 + len(verdict().claims)
    assert run.exit_code == 0


def test_true_is_a_project_of_the_deployments_name_and_other_machines_begin_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fake_wandb.install(monkeypatch)
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    assert not open_exports(deployment(wandb=True), RunFolder(tmp_path), first=False)
    assert not open_exports(deployment(), RunFolder(tmp_path), first=True)
    assert runs == []
    open_exports(deployment(wandb=True), RunFolder(tmp_path), first=True)
    assert (runs[0].settings["project"], runs[0].settings["dir"]) == ("small", "/elsewhere")


def test_a_run_that_fails_is_marked_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = fake_wandb.install(monkeypatch)
    with pytest.raises(KeyError), open_exports(deployment(wandb=True), RunFolder(tmp_path), first=True):
        raise KeyError("a rank failed")
    assert runs[0].exit_code == 1


def test_what_wandb_raises_later_ends_this_export_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, said = fake_wandb.install(monkeypatch), []
    sink = WandbRun("p", RunFolder(tmp_path), deployment())
    runs[0].problem = fake_wandb.Error("the service process died\nmore")
    with Exports([sink], said.append) as exports:
        exports.show(line(1), Roster(RunFolder(tmp_path)))
        assert not exports
    assert said == [
        "Weights & Biases project p: cannot be written any more (the service process died); the run goes on without"
    ]


def test_a_missing_package_and_a_refusal_are_one_sentence_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_json(tmp_path / "file.json", small())
    arguments = ("run", file, "--run-folder", tmp_path / "run", "--wandb", "mine")
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = command(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (4, "", 1)
    assert "Weights & Biases project mine: the package wandb cannot be imported" in done.err
    assert "pip install 'hybrid-runtime[wandb]'" in done.err
    fake_wandb.install(monkeypatch, fake_wandb.Error("api_key not configured (no-tty). call wandb.login"))
    done = command(*arguments)
    assert (done.code, done.err.count("\n")) == (4, 1)
    assert "a run cannot begin (api_key not configured (no-tty). call wandb.login); set WANDB_API_KEY" in done.err
    assert "WANDB_MODE=offline" in done.err
    assert not (tmp_path / "run/records").exists()
    with pytest.raises(EnvironmentProblem, match="cannot begin"):
        WandbRun("p", RunFolder(tmp_path), deployment())
