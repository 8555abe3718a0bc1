"""Fault drills of whole jobs (others: test_failures.py, test_checkpoints.py): the right name in the first line, and all
processes gone. The hang detector's limit is 2 s here, to save time; HYBRID_RUNTIME_HANG_LIMIT_S=10 tries another.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.checkpoint.folders import partial, step_of, whole
from hybrid_runtime.checkpoint.reader import check_whole
from hybrid_runtime.errors import ExitCode
from tests.commands import Done, is_alive, small, start, wait, write_json
from tests.test_failures import failing, rank_pid, torchrun, when_running

pytestmark = pytest.mark.ranks

LIMIT_S = int(os.environ.get("HYBRID_RUNTIME_HANG_LIMIT_S", "2"))
ENDED_S = 20
ONE, ZERO = "rank 1 (dp 0, pp 1, tp 0), stage 1", "rank 0 (dp 0, pp 0, tp 0), stage 0"


def first_line(done: Done) -> str:
    """Of what the command says besides progress."""
    lines = [line for line in done.err.splitlines() if not line.startswith("candidate step ")]
    return lines[0].removeprefix("hybrid-runtime: ").removeprefix("hybrid_runtime: ")


def deployed(folder: Path, **tables: Any) -> Path:
    values = small(parallel={"pp_degree": 2}, workload={"steps": 10**6}, faults={"hang_limit_s": LIMIT_S}, **tables)
    return write_json(folder / "drill.json", values)


def going_wrong(folder: Path, how: str, **faults: Any) -> Path:
    file = failing(folder, how)
    return write_json(file, json.loads(file.read_text()) | {"faults": faults})


def test_a_stopped_rank(tmp_path: Path) -> None:
    process = start("run", deployed(tmp_path), "--run-folder", tmp_path / "run", "--quiet", folder=tmp_path)
    pids = when_running(process, tmp_path / "run")
    stopped_s = time.time()
    os.kill(rank_pid(pids, 1), signal.SIGSTOP)
    done = wait(process, ENDED_S)
    assert time.time() - stopped_s < ENDED_S
    assert not [pid for pid in pids if is_alive(pid)], "also the stopped one"
    assert done.code == ExitCode.ERROR
    said = rf"{re.escape(ONE)}, step \d+, .*: gives no sign of life for \d+\.\d s: its process was stopped by a signal "
    assert re.match(rf"{said}\(SIGSTOP\); rank 0 waits for it in \w+ for \d+\.\d s ", first_line(done)), done.err
    told = (tmp_path / "run" / "hang.txt").read_text()
    assert told.count(" ago  ") > 10
    assert all(f"\n{rank}, step" in told for rank in (ZERO, ONE)), "last actions of every rank"


def test_a_rank_that_does_not_come_back(tmp_path: Path) -> None:
    """It sleeps inside its unit, and lives: its watcher beats, and the other rank waits."""
    file = going_wrong(tmp_path, "sleeps", hang_limit_s=LIMIT_S)
    done = wait(start("run", file, "--run-folder", tmp_path / "run", "--quiet", folder=tmp_path), 60)
    assert time.time() - float((tmp_path / "event").read_text()) < ENDED_S
    assert done.code == ExitCode.ERROR
    said = (
        rf"{re.escape(ONE)}, step 3, 1F0: no further for \d+\.\d s, and waits for no rank; rank 0 waits for it in \w+"
    )
    assert re.match(said, first_line(done)), done.err


def test_a_lost_link(tmp_path: Path) -> None:
    done = wait(torchrun(going_wrong(tmp_path, "cuts"), tmp_path / "run"), 60)
    assert time.time() - float((tmp_path / "event").read_text()) < ENDED_S
    both = (
        rf"{re.escape(one)}, step \d+, .*: lost the connection to rank {other}" for one, other in ((ZERO, 1), (ONE, 0))
    )
    assert re.match(rf"({'|'.join(both)}), which still runs: the link between them is lost$", first_line(done)), (
        done.err
    )


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    file = going_wrong(tmp_path, "spoils")
    done = wait(start("run", file, "--run-folder", tmp_path / "run", "--quiet", folder=tmp_path), 60)
    assert done.code == ExitCode.ERROR
    said = (
        f"{ONE}, step 3, 1F0, unit failing: its output is not finite, though what it was given is (loss nan); stopped"
    )
    assert first_line(done).startswith(said), done.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills(tmp_path: Path, small_disk: Path) -> None:
    """The run folder is on it, and everything else; the last checkpoint elsewhere is whole and said."""
    checkpoints = tmp_path / "checkpoints"
    file = deployed(tmp_path, checkpoint={"folder": str(checkpoints), "every": 10})
    process = start("run", file, "--run-folder", small_disk / "run", "--quiet", folder=tmp_path)
    when_running(process, small_disk / "run")
    while not whole(checkpoints):
        time.sleep(0.02)
    with contextlib.suppress(OSError), (small_disk / "other").open("wb", buffering=0) as other:
        while other.write(b"x" * 4096):
            pass
    done = wait(process, ENDED_S)
    assert done.code == ExitCode.ERROR
    newest = whole(checkpoints)[-1]
    check_whole(newest)
    words = rf"rank (\d) .*: {re.escape(str(small_disk))}/.*(cannot be written|No space left).*free space on that disk"
    assert re.match(
        rf"{words}; {newest} is whole: then run the same command again with --resume latest", first_line(done)
    )


def test_sigterm_to_plain_torchrun_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    process = torchrun(deployed(tmp_path, checkpoint={"folder": str(checkpoints), "every": 3}), tmp_path / "run")
    pids = when_running(process, tmp_path / "run")
    deadline_s = time.monotonic() + 30
    while not any(partial(checkpoints, step).exists() for step in range(3, 3000, 3)) and time.monotonic() < deadline_s:
        time.sleep(0.001)
    stopped_s = time.time()
    process.send_signal(signal.SIGTERM)
    done = wait(process, ENDED_S)
    assert time.time() - stopped_s < ENDED_S
    assert not [pid for pid in pids if is_alive(pid)]
    newest = whole(checkpoints)[-1]
    check_whole(newest)
    said = f"stopped by SIGTERM after step {step_of(newest)} of 1000000; {newest} is whole"
    assert any(line.startswith(f"hybrid_runtime: {said}") for line in done.err.splitlines()), done.err
