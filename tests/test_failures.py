"""When a rank dies, raises or is stopped: all ranks are gone soon, and one sentence says who, where and what.

rank 1 (dp 0, pp 1, tp 0), stage 1, step 3, 1F0, unit failing: ValueError: ...
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Done, environment, is_alive, small, start, wait, write_json

GONE_S = 15
WHO = r"rank (\d) \(dp 0, pp \1, tp 0\), stage \1, step \d+, "
ACTION = r"(DATA|OPTIMIZER|REDUCE_GRAD|last sends|\d[FB]\d+|\dSEND_[FB]\d+|\dRECV_[FB]\d+)"

pytestmark = pytest.mark.ranks


def endless(folder: Path, **tables: Any) -> Path:
    values = small(parallel={"pp_degree": 2}, **({"workload": {"steps": 10**6}} | tables))
    return write_json(folder / "endless.json", values)


def failing(folder: Path, how: str) -> Path:
    options = {"how": how, "step": 3, "microbatches": 4, "event": str(folder / "event")}
    values = small(parallel={"pp_degree": 2}, workload={"steps": 10**6})
    return write_json(
        folder / "failing.json", values | {"model": {"units": "tests.failing_model:units", "options": options}}
    )


def descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                yield child
                yield from descendants(child)


def rank_pid(pids: list[int], rank: int) -> int:
    """The process of a rank, by what torchrun put into its environment."""
    wanted = f"\0RANK={rank}\0".encode()
    return next(pid for pid in pids if wanted in Path(f"/proc/{pid}/environ").read_bytes())


def when_running(process: subprocess.Popen[str], run_folder: Path, rank: int = 1) -> list[int]:
    """Waits until ranks 0 to `rank` are in their steps; every process of the run."""
    deadline_s = time.monotonic() + 60
    files = [run_folder / "status" / f"rank{each}" for each in range(rank + 1)]
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError):
            if all(re.search(r"step=\d+ ", file.read_text()) for file in files):
                return list(descendants(process.pid))
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"never reached its first step: {process.communicate()}")


def assert_gone(pids: list[int], since_s: float) -> None:
    assert time.time() - since_s < GONE_S
    deadline_s = since_s + GONE_S
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.time() < deadline_s, f"still alive: {alive}"
        time.sleep(0.05)


def assert_one_sentence(done: Done, pattern: str, run_folder: Path) -> None:
    """Besides progress lines, stderr holds one line, which matches and names the log."""
    assert done.code == 4, done
    lines = [line for line in done.err.splitlines() if not line.startswith("candidate step ")]
    assert len(lines) == 1, done.err
    assert re.fullmatch(f"hybrid-runtime: {pattern}", lines[0]), lines[0]
    assert "Traceback" not in done.err + done.out
    assert (run_folder / "log.txt").stat().st_size


def torchrun(file: Path, run_folder: Path, *options: str) -> subprocess.Popen[str]:
    arguments = ["--standalone", "--nproc-per-node", "2", *options, "-m", "hybrid_runtime.job", str(file)]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments, "--run-folder", str(run_folder), "--quiet"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=file.parent,
    )  # fmt: skip


def test_a_killed_rank(tmp_path: Path) -> None:
    process = start("run", endless(tmp_path), "--run-folder", tmp_path / "run", folder=tmp_path)
    pids = when_running(process, tmp_path / "run")
    killed_s = time.time()
    os.kill(rank_pid(pids, 0), signal.SIGKILL)
    done = wait(process, GONE_S)
    assert_gone(pids, killed_s)
    log = tmp_path / "run" / "log.txt"
    pattern = (
        rf"rank 0 \(dp 0, pp 0, tp 0\), stage 0, step \d+, {ACTION}: killed by SIGKILL \(everything printed: {log}\)"
    )
    assert_one_sentence(done, pattern, tmp_path / "run")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", r"1F0, unit failing: ValueError: the unit's own words"),
        ("exits", r"1F0: ended with exit code 7 and no word"),
        (
            "exhausts",
            r"1F0, unit failing: out of memory: 4\.0 GiB more were asked for; the byte ledger counts parameters .*; "
            r"its plan predicted .*; use a smaller batch\.microbatch_size, .*",
        ),
    ],
)
def test_a_unit_that_goes_wrong_in_step_3(how: str, words: str, tmp_path: Path) -> None:
    process = start("run", failing(tmp_path, how), "--run-folder", tmp_path / "run", folder=tmp_path)
    pids = when_running(process, tmp_path / "run", rank=0)
    assert rank_pid(pids, 0) != rank_pid(pids, 1)
    done = wait(process)
    assert_gone(pids, float((tmp_path / "event").read_text()))
    who = r"rank 1 \(dp 0, pp 1, tp 0\), stage 1, step 3, "
    assert_one_sentence(done, rf"{who}{words} \(everything printed: .*log\.txt\)", tmp_path / "run")
    failures = {file.name for file in (tmp_path / "run" / "failures").iterdir()}
    assert failures >= ({"rank1.json", "rank1.traceback.txt"} if how != "exits" else {"rank0.json"})


SERVING: dict[str, Any] = {
    "workload": {"kind": "generate", "steps": 10**6},
    "load": {"requests": 4, "output_tokens": 40},
    "batch": {"global_batch_size": 4, "microbatch_size": 2, "sequence_length": 100},
}


@pytest.mark.parametrize(("number", "tables"), [(signal.SIGINT, SERVING), (signal.SIGTERM, {})], ids=["int", "term"])
def test_a_stopped_command(number: signal.Signals, tables: dict[str, Any], tmp_path: Path) -> None:
    """Of a deployment that serves, where one rank waits for items, and of a training."""
    process = start("run", endless(tmp_path, **tables), "--run-folder", tmp_path / "run", folder=tmp_path)
    pids = when_running(process, tmp_path / "run")
    stopped_s = time.time()
    process.send_signal(number)
    done = wait(process, GONE_S)
    assert_gone(pids, stopped_s)
    assert_one_sentence(done, f"stopped by {number.name}; what was recorded so far is kept", tmp_path / "run")


def test_a_killed_rank_under_plain_torchrun(tmp_path: Path) -> None:
    process = torchrun(endless(tmp_path), tmp_path / "run")
    pids = when_running(process, tmp_path / "run")
    killed_s = time.time()
    os.kill(rank_pid(pids, 1), signal.SIGKILL)
    done = wait(process, GONE_S)
    assert_gone(pids, killed_s)
    assert done.code != 0
    assert re.search(
        rf"^hybrid_runtime: {WHO}{ACTION}: (lost the connection|stopped by SIGTERM)", done.err, re.MULTILINE
    )


def test_a_unit_that_raises_under_plain_torchrun(tmp_path: Path) -> None:
    done = wait(torchrun(failing(tmp_path, "raises"), tmp_path / "run"))
    assert time.time() - float((tmp_path / "event").read_text()) < GONE_S
    assert done.code != 0
    sentence = "rank 1 (dp 0, pp 1, tp 0), stage 1, step 3, 1F0, unit failing: ValueError: the unit's own words"
    assert f"hybrid_runtime: {sentence}\n" in done.err
