"""The cache: made once, whole or not at all, also when several processes start at the same moment."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_runtime.data import cache
from hybrid_runtime.errors import EnvironmentProblem, UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hybrid_runtime" / "tokens"


def blocks() -> Iterator[NDArray[Any]]:
    for start in range(0, 30, 10):
        time.sleep(0.1)  # long enough for the other processes to look
        yield np.arange(start, start + 10, dtype=np.uint16)


def make(made: Any) -> None:
    def counted() -> Iterator[NDArray[Any]]:
        with made.get_lock():
            made.value += 1
        yield from blocks()

    path = cache.token_file("key", "uint16", counted)
    assert np.fromfile(path, dtype="<u2").tolist() == list(range(30))


def test_four_processes_at_once_write_it_once_and_all_read_it_whole(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    made = context.Value("i", 0)
    processes = [context.Process(target=make, args=(made,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert made.value == 1
    assert sorted(os.listdir(folder)) == ["key.lock", "key.uint16"]


def test_without_locks_the_rename_still_keeps_files_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert cache.token_file("key", "uint16", blocks) == folder / "key.uint16"


def test_a_failure_half_way_leaves_nothing_behind(folder: Path) -> None:
    def failing() -> Iterator[NDArray[Any]]:
        yield np.zeros(5, dtype=np.uint16)
        raise UsageError("latin.txt: is not UTF-8 text")

    with pytest.raises(UsageError, match=r"latin\.txt"):
        cache.token_file("key", "uint16", failing)
    assert os.listdir(folder) == ["key.lock"]
    assert np.fromfile(cache.token_file("key", "uint16", blocks), dtype="<u2").size == 30


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentProblem, match=r"cannot be cached there .*set XDG_CACHE_HOME"):
        cache.token_file("key", "uint16", blocks)


def test_without_the_variable_it_lies_under_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "hybrid_runtime" / "tokens"
