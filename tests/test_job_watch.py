"""The watcher of a rank whose run folder is lost judges alone: real processes, for it ends its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_runtime.errors import ExitCode
from hybrid_runtime.run_folder import RunFolder
from tests.commands import environment, wait
from tests.faults.test_hang import TWO

pytestmark = pytest.mark.alone

LIMIT_S = 1.0
WATCHED = f"""
import socket, sys, time
from pathlib import Path
from hybrid_runtime.faults.meeting_point import MeetingPoint
from hybrid_runtime.job_watch import Watch
from hybrid_runtime.plan import read_plan
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.telemetry.status import StatusFile
folder = RunFolder(Path(sys.argv[1]))
status = StatusFile(folder.status / "rank1", 1, (1,))
status.step(7)
status.doing("1F0")
if sys.argv[2] != "waits for nobody":
    status.wait("1RECV_F0", "pp=0")
silent = socket.create_server(("127.0.0.1", 0), backlog=0)
waiting = socket.create_connection(silent.getsockname())  # the next one is not answered
met = MeetingPoint("host1:29500", socket.AF_INET, silent.getsockname()) if sys.argv[2] == "cut off" else None
with Watch(folder, read_plan(folder.plan), 1, status, 0, {LIMIT_S}, met):
    time.sleep({LIMIT_S} * 3)
"""


def watched(folder: Path, how: str) -> subprocess.Popen[str]:
    run = RunFolder(folder / how)
    run.status.mkdir(parents=True, exist_ok=True)
    run.failures.mkdir()
    run.plan.write_text(TWO.to_json())
    return subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(run.path), how],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_rank_whose_folder_does_not_answer_says_for_whom_it_waits_and_leaves(tmp_path: Path) -> None:
    for how in ("held", "cut off", "waits for nobody"):  # whoever opens rank 0's file waits, as for a lost server
        (tmp_path / how / "status").mkdir(parents=True)
        os.mkfifo(tmp_path / how / "status" / "rank0")
    kinds = {how: watched(tmp_path, how) for how in ("held", "gone", "cut off", "waits for nobody")}
    done = {how: wait(process, 20) for how, process in kinds.items()}
    assert {how: ended.code for how, ended in done.items()} == {
        "held": ExitCode.ERROR, "gone": ExitCode.ERROR, "cut off": ExitCode.ERROR, "waits for nobody": ExitCode.PASS,
    }  # fmt: skip
    who = r"hybrid_runtime: rank 1 \(dp 0, pp 1, tp 0\), stage 1, step 7, 1F0: waits in 1RECV_F0 for rank 0 for 1\.\d s"
    for how in ("held", "gone"):
        assert re.fullmatch(
            rf"{who}, and \S+/{how} does not answer; the disk is lost, or what is on it\n", done[how].err
        )
    assert re.match(who, done["cut off"].err)
    assert done["cut off"].err.endswith(
        f"this machine, {socket.gethostname()}, is cut off: it does not reach host1:29500, where the ranks met\n"
    )
    assert done["waits for nobody"].err == ""
