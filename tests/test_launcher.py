"""What the launcher makes of a torchrun that has ended or does not end; torchrun is played by small processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybrid_runtime import launcher
from hybrid_runtime.errors import RunError, UsageError
from hybrid_runtime.launcher import Launched, Rendezvous, torchrun_command
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.run_folder import Failure, RunFolder, write_failure
from tests.commands import is_alive

SUMMARY = """\
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_12:00:00
  host      : node0
  rank      : {rank} (local_rank: 0)
  exitcode  : {code} (pid: 4711)
  error_file: <N/A>
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def launched(folder: RunFolder, code: str) -> Launched:
    with folder.log.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=log, start_new_session=True)
    return Launched(folder, process, Mesh(pp_degree=2), folder.log)


def explained(folder: RunFolder) -> str:
    side = launched(folder, "raise SystemExit(1)")
    while side.is_running():
        time.sleep(0.01)
    with pytest.raises(RunError) as found:
        side.check_alive()
    return str(found.value)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path).create()


def test_a_rank_that_lost_its_peer_is_not_the_cause(folder: RunFolder) -> None:
    write_failure(folder, Failure(0, "rank 0 lost it", 4, 10, lost_peer=True), "")
    write_failure(folder, Failure(1, "rank 1 raised", 2, 20), "")
    assert explained(folder) == f"rank 1 raised (everything printed: {folder.log})"


@pytest.mark.parametrize(
    ("code", "how"),
    [("-9 ", "killed by SIGKILL"), ("-11", "killed by SIGSEGV"), ("7 ", "ended with exit code 7 and no word")],
)
def test_a_rank_without_words_of_its_own_is_the_cause(code: str, how: str, folder: RunFolder) -> None:
    write_failure(folder, Failure(0, "rank 0 lost it", 4, 10, lost_peer=True), "")
    process = launched(folder, "raise SystemExit(1)")
    while process.is_running():
        time.sleep(0.01)
    folder.log.write_text(SUMMARY.format(rank=1, code=code))
    with pytest.raises(RunError) as found:
        process.check_alive()
    assert str(found.value).startswith(f"rank 1 (dp 0, pp 1, tp 0), before it was set up: {how} (")


def test_nothing_known_is_said_so(folder: RunFolder) -> None:
    assert explained(folder).startswith("torchrun ended with exit code 1 before any rank could say why (everything")


@pytest.mark.parametrize("how", ["stop", "check_alive"])
def test_what_does_not_end_is_killed_with_its_ranks(
    how: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_CLOSE_S", 0.2)
    side = launched(folder, STUBBORN)
    while not (text := folder.log.read_text()).endswith("\n"):
        time.sleep(0.01)
    if how == "stop":
        side.stop()
    else:
        write_failure(folder, Failure(0, "rank 0 raised", 4, 1), "")
        side.check_alive()  # the failure is new: torchrun may be closing the ranks
        time.sleep(0.3)
        with pytest.raises(RunError, match="rank 0 raised"):
            side.check_alive()
    assert not side.is_running()
    deadline_s = time.monotonic() + 5
    while is_alive(int(text)):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_ranks_are_shared_out_over_nodes() -> None:
    several = Rendezvous(nodes=2, node_rank=0, endpoint="node0:29500")
    command = torchrun_command(6, ["file"], several)
    assert command[command.index("--nproc-per-node") + 1] == "3"
    assert several.is_first
    assert not Rendezvous(nodes=2, node_rank=1, endpoint="node0:29500").is_first
    with pytest.raises(UsageError, match="use a number of nodes that divides 5"):
        torchrun_command(5, ["file"], several)
