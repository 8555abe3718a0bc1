"""Companions work while the body runs, are placed as ranks would be, and are gone afterwards."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from hybrid_runtime.errors import EnvironmentProblem, RunError, Stopped, UsageError
from hybrid_runtime.lone import company
from hybrid_runtime.lone.company import Companions, company_for
from hybrid_runtime.stop_signals import signals_stop

pytestmark = pytest.mark.alone


@contextmanager
def noting(folder: Path) -> Iterator[Callable[[], object]]:
    (folder / "cores").write_text(str(sorted(os.sched_getaffinity(0))))
    (folder / "pid").write_text(str(os.getpid()))
    yield lambda: (folder / "works").write_text(str(time.monotonic_ns()))


@contextmanager
def leaving(folder: Path) -> Iterator[Callable[[], object]]:
    yield lambda: os._exit(3) if (folder / "leave").exists() else None


@contextmanager
def unwilling() -> Iterator[Callable[[], object]]:
    raise UsageError("the model is not here; name it")
    yield lambda: None


def test_how_many() -> None:
    assert company_for(1, 8, oversubscribe=False).processes == 0
    assert company_for(4, 8, oversubscribe=False).processes == 3
    assert company_for(6, 2, oversubscribe=False).processes == 1  # six ranks run on other machines
    assert company_for(6, 2, oversubscribe=True).processes == 5
    assert company_for(64, 2, oversubscribe=True).processes == 7


def test_they_work_elsewhere_until_the_end(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    with Companions([partial(noting, tmp_path)]):
        mine, first = sorted(os.sched_getaffinity(0)), (tmp_path / "works").read_text()
        deadline_s = time.monotonic() + 30
        while (later := (tmp_path / "works").read_text()) in (first, "") and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert later not in (first, "")
    if len(before) > 1 and mine != sorted(before):
        assert (tmp_path / "cores").read_text() != str(mine)
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def loses_one(folder: Path) -> None:
    with Companions([partial(leaving, folder)]) as here:
        (folder / "leave").touch()
        here.started[0].join(30)


def test_one_that_leaves_and_one_that_cannot_begin(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ended early \(exit code 3\)"):
        loses_one(tmp_path)
    with pytest.raises(EnvironmentProblem, match="could not begin: the model is not here"):
        Companions([unwilling]).__enter__()


class Starting:
    """In place of a companion: a stop comes while it is being started."""

    did: ClassVar[list[str]] = []

    def __init__(self, **_: object) -> None: ...

    def start(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        self.did.append("started")

    def kill(self) -> None:
        self.did.append("killed")

    def join(self) -> None: ...


def test_one_that_is_being_started_when_a_stop_comes_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Starting)
    monkeypatch.setattr(company.mp, "get_context", lambda kind: context)
    with pytest.raises(Stopped, match="SIGTERM"), signals_stop():
        Companions([unwilling]).__enter__()
    assert Starting.did == ["started", "killed"]
