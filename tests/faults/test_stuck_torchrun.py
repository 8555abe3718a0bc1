from __future__ import annotations

import subprocess
import sys

import pytest

RANK = """
from hybrid_runtime.faults import stuck_torchrun
stuck_torchrun._IN_VAIN = 1
stuck_torchrun.end_if_stuck({"TORCHELASTIC_RUN_ID": "x"})
"""
TORCHRUN = """
import os, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
if sys.argv[2] == "closes":
    subprocess.run(["sleep", "2.5"], env=os.environ | {"LOCAL_RANK": "1"})
if sys.argv[2] != "is stuck":
    rank.wait()
time.sleep(float(sys.argv[3]))
"""


def torchrun(kind: str, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TORCHRUN, RANK, kind, str(seconds)])


@pytest.mark.ranks
def test_only_a_torchrun_that_takes_no_note_of_its_last_ranks_end_is_ended() -> None:
    """One lives; one waits for another rank first, to which it gives time to end."""
    stuck, lives, closes = torchrun("is stuck", 30), torchrun("lives", 2.5), torchrun("closes", 0)
    assert stuck.wait(20) == -9
    assert lives.wait(20) == 0
    assert closes.wait(20) == 0
