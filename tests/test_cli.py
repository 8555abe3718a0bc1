"""The commands when all is well: what they print where, their exit codes, and that `check` answers at once."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import typer

from hybrid_runtime.cli import app
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verifier.judge import judge, write_verdict
from hybrid_runtime.verifier.tool import tool_version
from tests.commands import ROOT, command, environment, small, write_json
from tests.verifier.synthetic import deployment, steady, write_run

CONFIGS = sorted((ROOT / "configs").iterdir())


def test_the_schema_accepts_the_deployment_files_and_refuses_others() -> None:
    done = command("schema")
    assert (done.code, done.err) == (0, "")
    schema = json.loads(done.out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in CONFIGS:
        text = path.read_text()
        validator.validate(tomllib.loads(text) if path.suffix == ".toml" else json.loads(text))
    validator.validate(small(optimizer={"learning_rate": "0.001"}))
    assert not validator.is_valid(small(optimizer={"learning_rat": 0.001}))
    assert not validator.is_valid(small(parallel={"tp_degree": "two"}))


def test_the_schema_goes_into_a_file(tmp_path: Path) -> None:
    done = command("schema", "--json", tmp_path / "schema.json")
    assert done == (0, "", "")
    assert json.loads((tmp_path / "schema.json").read_text())["title"] == "hybrid_runtime deployment"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_check_judges_every_file_of_the_repository(path: Path) -> None:
    done = command("check", path, "--json", "-")
    values = json.loads(done.out)
    assert done.code == values["exit_code"]
    assert values["counts"]["total"] == len(values["static_checks"])
    assert done.code == (1 if path.stem.startswith("original") else values["exit_code"])
    assert done.code != 1 or path.stem.startswith("original"), done.err
    *_, last = (line for line in done.err.splitlines() if line)
    closing = f"{values['verdict']}: {values['name']}: "
    assert closing in done.err
    assert ("must not be run" in last) == (done.code == 1)


def test_check_ends_with_the_counts_and_the_exit_code(tmp_path: Path) -> None:
    file = write_json(tmp_path / "file.json", small(parallel={"tp_degree": 4}))
    done = command("check", file, "--json", tmp_path / "figures.json")
    *_, closing, advice = done.out.splitlines()
    failed = json.loads((tmp_path / "figures.json").read_text())["counts"]["FAIL"]
    assert closing.startswith("FAIL: small: ")
    assert f"{failed} failed" in closing
    assert closing.endswith("requirements (exit code 1)")
    assert advice == "This plan must not be run: mend what failed, the rows say how."
    assert command("check", write_json(file, small())).out.splitlines()[-1].endswith("(exit code 0)")


@pytest.mark.alone
def test_check_answers_in_under_a_second_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['hybrid-runtime', 'check', 'configs/demo.toml']\n"
        "from hybrid_runtime.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print('exit', end.code, 'torch' in sys.modules)"
    )
    times_s = []
    for _ in range(3):
        start_s = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        times_s.append(time.perf_counter() - start_s)
        assert done.stdout.splitlines()[-1] == "exit 0 False"
    assert min(times_s) < 1.0, times_s


def test_a_dry_run_prints_the_torchrun_command_and_makes_nothing(tmp_path: Path) -> None:
    file, folder = write_json(tmp_path / "file.json", small(parallel={"dp_degree": 2})), tmp_path / "a folder"
    done = command("run", file, "--dry-run", "--run-folder", folder)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert shlex.split(done.out) == [*words, "-m", "hybrid_runtime.job", str(file), "--run-folder", str(folder)]
    assert (done.code, done.err) == (0, "")
    assert not folder.exists()
    several = ["--nodes", 2, "--node-rank", 1, "--rdzv-endpoint", "node0:29500", "--rdzv-id", "seven"]
    said = command("run", file, "--dry-run", "--run-folder", folder, *several).out
    assert (
        "--nnodes 2 --rdzv-conf is_host=false --rdzv-backend c10d --rdzv-endpoint node0:29500 --rdzv-id seven" in said
    )
    assert "--nproc-per-node 1" in said


def test_a_recheck_gives_the_same_verdict_each_time_and_refuses_edited_files(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    targets = {"compute_balance_pp": 1}
    write_run(run.path, steady([10_000, 10_000, 10_001]), deployment(targets=targets))
    write_verdict(judge(run.path), run.verdict)
    before = run.verdict.read_bytes()
    first, second = (command("verify", "--recheck", run.path, "--json", "-") for _ in range(2))
    assert first == second
    assert json.loads(first.out) == json.loads(before)
    assert first.code == json.loads(before)["exit_code"]
    assert "PASS: synthetic: " in first.err
    assert run.verdict.read_bytes() == before, "judging again writes nothing"

    path = run.records / "rank0.jsonl"
    path.write_bytes(path.read_bytes()[:-1] + b" \n")
    tampered = command("verify", "--recheck", run.path)
    assert tampered.code == 4
    assert f"{path}: was changed since it was judged; make the run again" in tampered.err
    assert tampered.out == ""


@pytest.mark.ranks
def test_an_inconclusive_verdict_can_pass_a_ci_job_and_says_so_everywhere(tmp_path: Path) -> None:
    values = small(baseline={"kind": "single"}, targets={"throughput_gain_percent": 5}, parallel={"dp_degree": 2})
    run = RunFolder(tmp_path / "run")
    file = write_json(tmp_path / "file.json", values)
    done = command("verify", file, "--run-folder", run.path, "--inconclusive", "pass", "--quiet")
    assert done.code == 0, done
    verdict = json.loads(run.verdict.read_text())
    assert (verdict["verdict"], verdict["exit_code"]) == ("INCONCLUSIVE", 0)
    assert verdict["overrides"] == {"inconclusive": "pass"}
    for said in (done.out, run.report.read_text()):
        assert "inconclusive counts as pass in the exit code" in said
    assert command("verify", "--recheck", run.path).code == 3
    assert command("verify", "--recheck", run.path, "--inconclusive", "fail").code == 1
    assert verdict["provenance"]["run"]["candidate: command"].endswith("--side candidate")
    launches = [json.loads(line) for line in (tmp_path / "launches.jsonl").read_text().splitlines()]
    assert [launch["run_folder"] for launch in launches] == ["run"]


def test_no_word_of_a_help_text_is_taken_for_markup() -> None:
    pending: list[Any] = [typer.main.get_command(app)]
    while pending:
        found = pending.pop()
        pending += getattr(found, "commands", {}).values()
        for text in (found.help, *(getattr(option, "help", None) for option in found.params)):
            assert not re.search(r"\[[a-z]", text or ""), f"{found.name}: rich swallows a word in brackets: {text}"


def test_help_names_the_exit_codes_and_goes_to_stdout() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hybrid_runtime", "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    flat = " ".join(done.stdout.replace("│", " ").split())
    assert "0 all pass, 1 a claim fails, 2 usage or file error, 3 inconclusive, 4 environment or runtime error" in flat
    for name in ("check", "run", "verify", "schema"):
        assert name in flat


def test_the_version_is_the_packages() -> None:
    done = command("--version")
    assert done.code == 0
    assert done.out.strip() == tool_version()
