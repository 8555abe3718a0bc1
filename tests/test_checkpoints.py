"""Checkpoints of whole jobs: told to leave, restarted by torchrun, refused folders."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.checkpoint.folders import step_of, whole
from hybrid_runtime.errors import ExitCode
from hybrid_runtime.verifier.side import load_side
from tests.commands import run, small, start, wait, write_json
from tests.test_failures import assert_gone, failing, torchrun, when_running

pytestmark = pytest.mark.ranks


def deployed(folder: Path, steps: int, **table: Any) -> Path:
    checkpoint = {"folder": str(folder / "checkpoints"), "every": 10**6} | table
    values = small(parallel={"pp_degree": 2}, workload={"steps": steps}, checkpoint=checkpoint)
    return write_json(folder / f"{steps}.json", values)


def test_sigterm_writes_a_checkpoint_and_the_run_goes_on_from_it(tmp_path: Path) -> None:
    process = start("run", deployed(tmp_path, 10**6), "--run-folder", tmp_path / "run", "--quiet", folder=tmp_path)
    pids = when_running(process, tmp_path / "run")
    stopped_s = time.time()
    process.send_signal(signal.SIGTERM)
    done = wait(process)
    assert_gone(pids, stopped_s)
    assert done.code == ExitCode.STOPPED == 5
    (checkpoint,) = whole(tmp_path / "checkpoints")
    step = step_of(checkpoint)
    (said,) = [line for line in done.err.splitlines() if not line.startswith("candidate step ")]
    assert said == (
        f"hybrid-runtime: stopped by SIGTERM after step {step} of 1000000; {checkpoint} is whole: "
        "run the same command again with --resume latest"
    )
    again = run(
        "run", deployed(tmp_path, step + 6), "--run-folder", tmp_path / "again", "--resume", "latest", "--json",
        tmp_path / "verdict.json", folder=tmp_path,
    )  # fmt: skip
    assert again.code == ExitCode.PASS, again
    side = load_side(tmp_path / "again", "candidate")
    assert [(rank.header.trained_before, len(rank.steps)) for rank in side.ranks] == [(step, 6), (step, 6)]
    assert side.ranks[0].header.launch["resumed from"] == str(checkpoint)
    assert [step_of(path) for path in whole(tmp_path / "checkpoints")] == [step, step + 6]


def test_a_run_that_torchrun_restarts_goes_on_by_itself(tmp_path: Path) -> None:
    file = failing(tmp_path, "raises")  # in every attempt, after three steps
    checkpoint = {"folder": str(tmp_path / "checkpoints"), "every": 2, "asynchronous": False}
    values = json.loads(file.read_text()) | {"checkpoint": checkpoint}
    values["workload"] = {"steps": 5}
    done = wait(torchrun(write_json(file, values), tmp_path / "run", "--max-restarts", "1"))
    assert done.code == 0, done
    assert "ValueError: the unit's own words" in done.err
    side = load_side(tmp_path / "run-restart1", "candidate")
    assert [(rank.header.trained_before, len(rank.steps)) for rank in side.ranks] == [(2, 3), (2, 3)]
    assert [path.name for path in whole(tmp_path / "checkpoints")] == ["step-00000004", "step-00000005"]
    assert (tmp_path / "run" / "records").is_dir(), "what the first attempt recorded is kept"


def test_damage_is_named_by_the_command(tmp_path: Path) -> None:
    file = deployed(tmp_path, 4)
    values = json.loads(file.read_text()) | {"parallel": {}}
    assert run("run", write_json(file, values), "--run-folder", tmp_path / "run", "-q", folder=tmp_path).code == 0
    (checkpoint,) = whole(tmp_path / "checkpoints")
    path = checkpoint / "rank0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    values["workload"]["steps"] = 8
    write_json(file, values)
    damaged = run("run", file, "--run-folder", tmp_path / "more", "--resume", checkpoint, "-q", folder=tmp_path)
    assert damaged.code == ExitCode.ERROR
    assert re.search(r"rank0\.safetensors: is damaged: bytes \d+ to \d+, of [\w.]+, are not those", damaged.err)
