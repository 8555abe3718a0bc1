from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.run_folder import Failure, RunFolder, new_run_folder, read_failures, write_failure, write_whole


def test_new_folders_never_collide(tmp_path: Path) -> None:
    first = new_run_folder("my run/../x", tmp_path).create()
    second = new_run_folder("my run/../x", tmp_path)
    assert first.path.parent == tmp_path
    assert first.path != second.path


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"cannot be written \(.*\); name another with --run-folder"):
        RunFolder(tmp_path / "file" / "run").create()


def test_failures_are_read_in_order_of_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    for rank, when in ((0, 30), (1, 10), (2, 20)):
        write_failure(folder, Failure(rank, f"rank {rank} failed", 4, when), "Traceback ...")
    assert [failure.rank for failure in read_failures(folder)] == [1, 2, 0]
    assert (folder.failures / "rank1.traceback.txt").read_text() == "Traceback ..."


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]
