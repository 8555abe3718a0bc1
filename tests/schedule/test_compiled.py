"""Compiled loops: where they are cached, and that they never cost those who do not use them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_runtime.schedule.compiled import cache_folder

ROOT = Path(__file__).parents[2]


def run(code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )


REPLAY = """
from hybrid_runtime.schedule import replay
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.one_f_one_b import one_f_one_b
replay.COMPILED_FROM = 0
print(replay.replay(one_f_one_b(2, 2), (0, 1), {(k, kind): 1 for k in (0, 1) for kind in Kind}).makespan)
"""


def test_the_cache_is_used_again(tmp_path: Path) -> None:
    assert run(REPLAY, tmp_path).stdout == "6\n"
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    assert files
    assert all(path.is_relative_to(tmp_path / "hybrid_runtime" / "numba") for path in files)
    assert run(REPLAY, tmp_path).stdout == "6\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")} == files


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "hybrid_runtime").write_text("a file stands where the folder should")
    done = run(REPLAY, tmp_path)
    assert (done.stdout, done.stderr) == ("6\n", "")


def test_short_lists_load_neither_numba_nor_numpy(tmp_path: Path) -> None:
    code = REPLAY.replace("replay.COMPILED_FROM = 0", "import sys") + "assert not {'numba', 'numpy'} & set(sys.modules)"
    done = run(code, tmp_path)
    assert (done.stdout, done.stderr) == ("6\n", "")


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/hybrid_runtime/numba")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/hybrid_runtime/numba"
