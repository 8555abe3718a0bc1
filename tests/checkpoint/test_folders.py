from __future__ import annotations

import errno
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybrid_runtime.checkpoint import folders
from hybrid_runtime.checkpoint.manifest import MANIFEST
from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.job_checkpoints import _prove_useful


def make(folder: Path, *steps: int, size: int = 100) -> Path:
    for step in steps:
        path = folder / folders.name_of(step)
        path.mkdir(parents=True)
        (path / MANIFEST).write_bytes(b"x" * size)
    return folder


def test_only_whole_checkpoints_are_seen_in_the_order_of_their_steps(tmp_path: Path) -> None:
    make(tmp_path, 20, 9, 123456789)
    (tmp_path / ".partial-step-00000030").mkdir()
    (tmp_path / "step-00000040").mkdir()  # without a manifest
    (tmp_path / "step-x").mkdir()
    assert [folders.step_of(path) for path in folders.whole(tmp_path)] == [9, 20, 123456789]
    assert folders.whole(tmp_path / "none") == []


def test_what_is_resumed(tmp_path: Path) -> None:
    empty, there = tmp_path / "empty", make(tmp_path / "there", 4, 8)
    newest = there / folders.name_of(8)
    assert folders.choose(None, None, restarted=False) is None
    assert folders.choose(empty, None, restarted=True) is None
    assert folders.choose(there, "latest", restarted=False) == newest
    assert folders.choose(there, "auto", restarted=False) == newest
    assert folders.choose(empty, "auto", restarted=False) is None
    assert folders.choose(empty, str(there), restarted=False) == newest
    assert folders.choose(empty, str(there / folders.name_of(4)), restarted=False) == there / folders.name_of(4)
    assert folders.choose(None, str(newest), restarted=False) == newest
    assert folders.choose(there, None, restarted=True) == newest
    assert folders.choose(there, str(there / folders.name_of(4)), restarted=True) == newest, "it has come further"


@pytest.mark.parametrize(
    ("folder", "resume", "words"),
    [
        ("there", None, "already holds checkpoints, the newest step-00000008; continue from it with --resume latest"),
        ("there", "there/step-00000004", "holds step-00000008, which is newer than .*step-00000004"),
        ("empty", "latest", "holds no whole checkpoint; name a folder step-..."),
        ("empty", "nowhere", "nowhere holds no whole checkpoint"),
        (None, "latest", "--resume latest needs the table"),
        (None, "auto", "--resume auto needs the table"),
    ],
)
def test_what_is_refused(
    folder: str | None, resume: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("there"), 4, 8)
    with pytest.raises(UsageError, match=words):
        folders.choose(Path(folder) if folder else None, resume, restarted=False)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = re.escape(f"checkpoint.folder = '{tmp_path}/file/deeper' cannot be written (Not a directory); name another")
    with pytest.raises(EnvironmentProblem, match=words):
        folders.refuse_unwritable(tmp_path / "file" / "deeper")


def test_a_disk_that_is_too_full_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 4, 8)  # 200 bytes, of which the older goes
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100))
    folders.refuse_too_full(tmp_path, checkpoint_bytes=100, keep=2)
    with pytest.raises(
        EnvironmentProblem, match=r"100 bytes are free, and keep = 2 checkpoints of 101 bytes .* need 103"
    ):
        folders.refuse_too_full(tmp_path, checkpoint_bytes=101, keep=2)


def test_what_was_left_is_cleared(tmp_path: Path) -> None:
    make(tmp_path, 4)
    (tmp_path / ".partial-step-00000008").mkdir()
    (tmp_path / ".partial-step-00000008" / "rank0.safetensors").write_text("half")
    folders.clear_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folders.take(tmp_path)
    with pytest.raises(UsageError, match=rf"another run writes its checkpoints there \(process {os.getpid()} on "):
        folders.take(tmp_path)
    first.close()
    second = folders.take(tmp_path)
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    second.close()
    monkeypatch.setattr(folders.fcntl, "flock", without_locks)
    folders.take(tmp_path).close()
    with pytest.raises(EnvironmentProblem, match=r"checkpoint.folder = .* cannot be written"):
        folders.take(tmp_path / "none")


def test_the_run_before_has_written_more_since_this_one_chose(tmp_path: Path) -> None:
    chosen = folders.choose(make(tmp_path, 20, 40), "auto", restarted=False)
    folders.refuse_newer(tmp_path, chosen)
    folders.refuse_newer(tmp_path / "none", None)
    make(tmp_path, 60)
    words = "another run has written step-00000060 since this one chose step-00000040 to go on from; run the same"
    with pytest.raises(UsageError, match=words):
        folders.refuse_newer(tmp_path, chosen)
    alone: Any = SimpleNamespace(gather_numbers=lambda numbers: [numbers], place=SimpleNamespace(rank=0))
    with pytest.raises(UsageError, match="step-00000060 since this one began; run the same command again"):
        _prove_useful(tmp_path, alone, 0, 2, None)


def without_locks(file: object, operation: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_ranks_that_chose_different_checkpoints_are_told_apart(tmp_path: Path) -> None:
    folders.refuse_different(tmp_path, [40, 40])
    with pytest.raises(UsageError, match=r"rank 0 chose step-00000060 to go on from, rank 2 nothing: another run"):
        folders.refuse_different(tmp_path, [60, 60, -1])
