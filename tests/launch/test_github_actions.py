"""The GitHub Actions example: every command in it exists and means what the workflow takes it for."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml  # type: ignore[import-untyped]

from hybrid_runtime.cli import Inconclusive, app
from tests.commands import ROOT, command

WORKFLOW = ROOT / "launch" / "github_actions.yml"
COMMAND = ".venv/bin/hybrid-runtime"
workflow: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text())
steps: list[dict[str, Any]] = workflow["jobs"]["verify"]["steps"]
scripts = {step["name"]: step["run"] for step in steps if "run" in step}


def filled_in(script: str, **more: str) -> str:
    for name, value in (workflow["env"] | {"INCONCLUSIVE": "pass"} | more).items():
        script = script.replace(f"${name}", value)
    return script


def test_it_is_a_workflow() -> None:
    assert set(workflow[True]) == {"push", "pull_request", "workflow_dispatch"}  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read", "checks": "write"}
    assert all(("uses" in step) != ("run" in step) for step in steps)
    assert all("@v" in step["uses"] for step in steps if "uses" in step)


@pytest.mark.parametrize("name", scripts)
def test_scripts_are_valid_bash_and_their_programs_exist(name: str) -> None:
    subprocess.run(["bash", "-n"], input=scripts[name], text=True, check=True)
    program = shlex.split(scripts[name])[0]
    assert program in (COMMAND, "if") or (ROOT / program).is_file()


@pytest.mark.parametrize("name", [name for name, script in scripts.items() if script.startswith(COMMAND)])
def test_the_commands_options_exist(name: str) -> None:
    _, subcommand, *arguments = shlex.split(filled_in(scripts[name]))
    group: Any = typer.main.get_command(app)
    with group.commands[subcommand].make_context(subcommand, arguments) as context:
        assert context.params.get("inconclusive") in (None, Inconclusive.PASS)


def test_the_choices_are_the_commands() -> None:
    choice = workflow[True]["workflow_dispatch"]["inputs"]["inconclusive"]
    assert choice["options"] == [option.value for option in Inconclusive]
    assert choice["default"] == "pass"
    assert workflow["env"]["INCONCLUSIVE"] == "${{ inputs.inconclusive || 'pass' }}"


def test_its_deployment_passes_the_check() -> None:
    done = command("check", ROOT / workflow["env"]["FILE"])
    assert done.code == 0, done


def test_what_is_published_is_what_the_run_leaves(tmp_path: Path) -> None:
    folder = workflow["env"]["RUN_FOLDER"]
    conditions = {step["name"]: step["if"] for step in steps if "if" in step}
    assert conditions["Publish every requirement as a test"] == f"always() && hashFiles('{folder}/junit.xml') != ''"
    assert conditions["Summary"] == conditions["Keep the run folder"] == "always()"
    assert f"--run-folder {folder}" in " ".join(shlex.split(filled_in(scripts["Verify"])))


@pytest.mark.parametrize(("report", "shown"), [("# a report\n", "# a report"), (None, "was not run")])
def test_the_summary_step(report: str | None, shown: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if report:
        (folder / "report.md").write_text(report)
    summary = tmp_path / "summary.md"
    environment = {"RUN_FOLDER": str(folder), "GITHUB_STEP_SUMMARY": str(summary), "PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", "-eo", "pipefail", "-c", scripts["Summary"]], env=environment, check=True)
    assert shown in summary.read_text()
