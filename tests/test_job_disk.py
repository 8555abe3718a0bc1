from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.job_disk import records_bytes_per_step, refuse_too_full
from hybrid_runtime.run_folder import Failure, RunFolder, read_failures, reserve_failure, write_failure
from tests.faults.test_hang import TWO


def test_a_disk_is_refused_warned_of_or_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, step = RunFolder(tmp_path), records_bytes_per_step(TWO)
    assert 2_000 < step < 20_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * step))
    assert refuse_too_full(folder, TWO, 100) is None
    warning = refuse_too_full(folder, TWO, 101)
    assert warning is not None
    assert "the records of 101 steps take about" in warning
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * step - 1))
    with pytest.raises(EnvironmentProblem, match=r"the records of 100 steps take about .*; free space, or name"):
        refuse_too_full(folder, TWO, 100)
    assert refuse_too_full(folder, TWO, 99) is None


def test_a_failures_sentence_has_its_room_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path).create()
    reserve_failure(folder, 2)
    assert read_failures(folder) == []
    reserved = folder.failures / ".rank2.reserved"
    inode = reserved.stat().st_ino
    failure = Failure(2, "rank 2: the disk is full", 4, 7)
    write_failure(folder, failure, "details")
    assert read_failures(folder) == [failure]
    assert (folder.failures / "rank2.json").stat().st_ino == inode, "no new file was needed"
    again = Failure(2, "x" * 9000, 4, 8)
    write_failure(folder, again, "details")
    assert json.loads((folder.failures / "rank2.json").read_text())["message"] == "x" * 9000
