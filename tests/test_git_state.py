"""Commits and what differs from them, and reasons where there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hybrid_runtime import git_state as this
from hybrid_runtime.git_state import git_state


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def work_tree(tmp_path: Path) -> Path:
    git(tmp_path, "init")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    git_state.cache_clear()
    return tmp_path


def test_clean_and_dirty(work_tree: Path) -> None:
    commit = git(work_tree, "rev-parse", "HEAD")
    (work_tree / "untracked").write_text("x")
    assert git_state(work_tree) == f"{commit}, clean"
    git_state.cache_clear()
    (work_tree / "file").write_text("b")
    assert git_state(work_tree) == f"{commit}, dirty: 1 file"


def test_no_work_tree_no_commit_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git_state.cache_clear()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path).startswith("n/a: not a git repository")
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init")
    assert git_state(tmp_path / "empty") == "n/a: Needed a single revision"
    monkeypatch.setenv("PATH", "/nowhere")
    git_state.cache_clear()
    assert git_state(tmp_path) == "n/a: git is not installed"


def test_git_that_hangs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 5\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(this, "_TIMEOUT_S", 0.1)
    git_state.cache_clear()
    assert git_state(tmp_path) == "n/a: git did not answer within 0.1 s"
    git_state.cache_clear()
