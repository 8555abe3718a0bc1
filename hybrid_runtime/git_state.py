"""Which git commit a folder is at, in words; "n/a: ..." where there is no answer, never an empty text."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

_TIMEOUT_S = 10  # a work tree of a million files must not delay a run


@cache
def git_state(folder: Path) -> str:
    """The commit of the work tree that a folder lies in: "1a2b...", with ", dirty: 3 files" if files differ from it.

    Untracked files do not count: they would make every folder with results in it dirty.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit.startswith("n/a"):
        return commit
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if status.startswith("n/a"):
        return f"{commit}, {status}"
    changed = len(status.splitlines())
    return f"{commit}, dirty: {changed} file{'s' if changed != 1 else ''}" if changed else f"{commit}, clean"


def _git(folder: Path, *words: str) -> str:
    """What a read-only git command prints, or why there is nothing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},  # status must not write the index
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        return "n/a: git is not installed"
    except subprocess.TimeoutExpired:
        return f"n/a: git did not answer within {_TIMEOUT_S} s"
    except OSError as problem:
        return f"n/a: git cannot be started ({problem.strerror})"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"git ended with exit code {done.returncode}"]
        return f"n/a: {lines[0].removeprefix('fatal: ')}"
    return done.stdout.strip()
