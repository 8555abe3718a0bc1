"""The cache of token files: text is tokenised once per machine, however many ranks start at the same moment.

$XDG_CACHE_HOME/hybrid_runtime/tokens/<key>.uint16         finished: appears whole, by a rename
                                     /<key>.<random>.part  being written
                                     /<key>.lock           held by the one rank of this host that writes
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hybrid_runtime.errors import EnvironmentProblem


def cache_folder() -> Path:
    """Where token files are kept: $XDG_CACHE_HOME or ~/.cache, then hybrid_runtime/tokens."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hybrid_runtime" / "tokens"


def token_file(key: str, dtype: str, blocks: Callable[[], Iterable[NDArray[Any]]]) -> Path:
    """The finished token file of `key`, written from `blocks()` unless it is there already.

    Args:
        key: names the content; equal keys must mean equal tokens.
        blocks: gives arrays of `dtype` ("uint8", "uint16", "uint32"), one after the other.

    Raises:
        EnvironmentProblem: the cache folder cannot be written.
    """
    path = cache_folder() / f"{key}.{dtype}"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            if not path.is_file():
                _write(path, dtype, blocks())
    except OSError as problem:
        raise EnvironmentProblem(
            f"{path.parent}: tokens cannot be cached there ({problem.strerror}); free some space or set XDG_CACHE_HOME "
            "to a folder that can be written"
        ) from None
    return path


def _write(path: Path, dtype: str, blocks: Iterable[NDArray[Any]]) -> None:
    """Writes beside and renames, so that no reader ever sees half a file, not even on a shared file system."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.stem}.", suffix=".part", delete=False) as part:
        try:
            for block in blocks:
                assert block.dtype == dtype, (block.dtype, dtype)
                part.write(block.astype(f"<u{block.dtype.itemsize}", copy=False).tobytes())
            part.flush()
            os.fsync(part.fileno())
            os.replace(part.name, path)
        except BaseException:
            os.unlink(part.name)
            raise


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Holds the lock. It only saves work - the rename keeps files whole - so a file system without locks is fine."""
    with lock.open("w") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
