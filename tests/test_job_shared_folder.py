"""Folders that ranks see alike or not; the groups are stand-ins, real machines are in test_hosts.py."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybrid_runtime.job_shared_folder import first_blind_rank


class Meeting:
    """Three ranks as threads, with the two ways to meet that are used."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=10)
        self._given: list[object] = [None] * ranks

    def of(self, rank: int) -> Any:
        def gather(value: object) -> list[object]:
            self._given[rank] = value
            self._barrier.wait()
            everyone = list(self._given)
            self._barrier.wait()
            return everyone

        return SimpleNamespace(place=SimpleNamespace(rank=rank), barrier=self._barrier.wait, gather_objects=gather)


@pytest.mark.parametrize(("seen", "blind"), [((0, 0, 0), None), ((0, 0, 1), 2), ((0, 1, 2), 1)])
def test_the_first_rank_that_sees_another_folder_is_known_to_all(
    seen: tuple[int, ...], blind: int | None, tmp_path: Path
) -> None:
    folders = [tmp_path / str(number) for number in seen]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    meeting, found = Meeting(3), {}

    def ask(rank: int) -> None:
        found[rank] = first_blind_rank(folders[rank], meeting.of(rank))

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: blind, 1: blind, 2: blind}
    assert [list(folder.iterdir()) for folder in folders] == [[], [], []]
