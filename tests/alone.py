"""Tests that a neighbour would disturb run alone, where pytest-xdist runs several at once.

Every worker holds a lock while a test runs: with the others, or alone. On the way in it holds a second one, as long as
it has to wait: whoever waits to be alone would else be overtaken for ever. They are locks on files of the checkout, so
tests of a second pytest with workers take turns with them, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

MARKS = ("alone", "ranks", "gpu")  # what is measured or fills the cores says so, and so do those with several processes
_HERE = Path(__file__)


@contextlib.contextmanager
def turn(alone: bool) -> Iterator[None]:
    """Waits until a test may run; without workers, that is now."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with _locked(_HERE, fcntl.LOCK_EX) as way_in, _locked(_HERE.with_name("conftest.py"), _kind(alone)):
        fcntl.flock(way_in, fcntl.LOCK_UN)
        yield


def _kind(alone: bool) -> int:
    return fcntl.LOCK_EX if alone else fcntl.LOCK_SH


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, kind)
        yield file
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do while a forked process has it open
        os.close(file)
