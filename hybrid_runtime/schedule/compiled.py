"""Machine code for the few loops that run millions of times: numba where it is installed, plain Python where it is not.

    @jit
    def loop(...): ...

Importing numba takes a quarter of a second, so modules with such loops are imported where they are used, never by
those that only read, check or draw lists. Compiled code is kept in $XDG_CACHE_HOME/hybrid_runtime/numba (~/.cache if
that is not set); a folder that cannot be written costs a few seconds per process and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

Loop = TypeVar("Loop", bound=Callable[..., Any])


def _numba() -> Any:
    try:
        return importlib.import_module("numba")
    except ImportError:
        return None


numba = _numba()

COMPILED = numba is not None  # False: the same loops run as Python, two to three orders of magnitude slower


def jit(loop: Loop) -> Loop:
    """The loop as machine code, compiled on its first call, without the interpreter lock; same arguments and results.

    It may use integers, floats and arrays only, and call other `jit` loops and constants of its own folder: a change of
    any file there compiles all anew.
    """
    if numba is None:
        return loop
    folder = cache_folder() / _digest(Path(loop.__code__.co_filename).parent)
    usable = _writable(folder)
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder) if usable else ""
    try:
        compiled: Loop = numba.njit(nogil=True, cache=usable)(loop)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


def cache_folder() -> Path:
    """Where compiled loops are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hybrid_runtime" / "numba"


@cache
def _digest(sources: Path) -> str:
    """Short name of a folder's sources: numba itself looks only at the file of the loop that is called first."""
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
