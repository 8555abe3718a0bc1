import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.telemetry.status import Status, StatusFile, read_status


def test_a_launcher_can_read_what_a_rank_was_doing(tmp_path: Path) -> None:
    path = tmp_path / "status" / "rank3"
    status = StatusFile(path, 3, (1, 4))
    size = path.stat().st_size
    assert read_status(path) == Status(3, None, "1,4", "starting")
    assert str(read_status(path)) == "stage 1,4, before the first step, starting"
    status.step(12)
    status.doing("4B15")
    assert read_status(path) == Status(3, 12, "4", "4B15")
    status.doing("OPTIMIZER")
    status.step(9)
    assert str(read_status(path)) == "stage 1,4, step 9, OPTIMIZER"
    status.doing("a very long description " * 9)
    assert path.stat().st_size == size
    found = read_status(path)
    assert found is not None
    assert found.action.startswith("a very long description")
    status.doing("finished")
    status.close()
    assert read_status(path) == Status(3, 9, "1,4", "finished")


_KILLED = """
import os, signal, sys
from pathlib import Path
from hybrid_runtime.telemetry.status import StatusFile
status = StatusFile(Path(sys.argv[1]), 2, (5,))
status.step(7)
status.doing("5F1")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_rank_leaves_its_status(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "rank2")], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert read_status(tmp_path / "rank2") == Status(2, 7, "5", "5F1")


def test_no_status_is_no_status(tmp_path: Path) -> None:
    assert read_status(tmp_path / "rank0") is None
    (tmp_path / "rank0").write_bytes(b"\xff\x00 something else")
    assert read_status(tmp_path / "rank0") is None
    (tmp_path / "rank1").write_text("something else\n")
    assert read_status(tmp_path / "rank1") is None


def test_a_status_file_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "rank0").mkdir()
    with pytest.raises(EnvironmentProblem, match="rank0: the status file cannot be written"):
        StatusFile(tmp_path / "rank0", 0, (0,))
