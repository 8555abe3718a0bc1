"""Text on disk -> blocks of token ids: which files, in which order, with what between two of them.

Files are taken in the order of their paths. Between two files stands one token that says "a new document": byte 0 for
bytes, the tokenizer's own end-of-text token (if it has one) otherwise.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_runtime.errors import UsageError
from hybrid_runtime.tokenizer_file import END_OF_TEXT

SEPARATOR = b"\0"
BLOCK_CHARACTERS = 1 << 20  # whole lines; keeps memory bounded on files of any size
LIBRARY_BYTES = 8 * 10**6
KEY_VERSION = b"hybrid_runtime tokens 1"  # changes whenever the same text would give other tokens

# Not prose or code that a person reads: tables, generated files, or packages that some distributions leave out.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
_NOT_LIBRARY |= {"distutils", "pydoc_data", "encodings", "lib-dynload", "__pycache__"}


def text_files(path: Path, pattern: str) -> list[Path]:
    """The file itself, or the files of a folder that match, hidden ones left out, ordered by path.

    Raises:
        UsageError: nothing is there, or nothing matches.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path}: does not exist; name a text file or a folder of them")
    try:
        found = [file for file in path.glob(pattern) if file.is_file() and not _hidden(file.relative_to(path))]
    except (ValueError, NotImplementedError, IndexError) as problem:
        raise UsageError(
            f"[data] glob {pattern!r} is not a pattern ({problem}); write one such as '**/*.txt'"
        ) from None
    if not found:
        raise UsageError(f"{path}: no file in it matches {pattern!r}; change [data] path or [data] glob")
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def library_files() -> list[Path]:
    """The sources of this Python's standard library that can be read, ordered by path; the same for equal Pythons.

    Raises:
        UsageError: this Python came without sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY and not name.startswith("config-")]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    readable = [file for file in found if os.access(file, os.R_OK)]
    if not readable:
        raise UsageError(f"{root}: holds no Python sources; set [data] source = 'text' and a path to your own text")
    return sorted(readable, key=lambda file: file.relative_to(root).as_posix())


def library_text() -> bytes:
    """At most LIBRARY_BYTES of the standard library's sources, with a separator between files."""
    parts: list[bytes] = []
    size = 0
    for block in byte_blocks(library_files()):
        parts.append(block.tobytes())
        size += len(parts[-1])
        if size >= LIBRARY_BYTES:
            break
    return b"".join(parts)[:LIBRARY_BYTES]


def content_key(files: Sequence[Path], tokenizer_file: Path | None) -> str:
    """SHA-256 over the tokenizer file and the content of all files in order: equal keys, equal tokens.

    Raises:
        UsageError: a file cannot be read.
    """
    whole = hashlib.sha256(KEY_VERSION)
    for file in [*([] if tokenizer_file is None else [tokenizer_file]), *files]:
        try:
            with file.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as problem:
            raise _unreadable(file, problem) from None
    return whole.hexdigest()


def byte_blocks(files: Sequence[Path]) -> Iterator[NDArray[Any]]:
    """Each file's bytes, with SEPARATOR before every file but the first.

    Raises:
        UsageError: a file cannot be read.
    """
    for number, file in enumerate(files):
        try:
            content = file.read_bytes()
        except OSError as problem:
            raise _unreadable(file, problem) from None
        yield np.frombuffer(SEPARATOR + content if number and content else content, dtype=np.uint8)


def token_blocks(files: Sequence[Path], tokenizer: Any, dtype: str) -> Iterator[NDArray[Any]]:
    """Each file's token ids, tokenised in blocks of whole lines, with the end-of-text token after every file.

    Raises:
        UsageError: a file cannot be read or is not UTF-8.
    """
    end = next((id for token in END_OF_TEXT if (id := tokenizer.token_to_id(token)) is not None), None)
    for file in files:
        for lines in _line_blocks(file):
            yield np.asarray(tokenizer.encode("".join(lines), add_special_tokens=False).ids, dtype=dtype)
        if end is not None:
            yield np.asarray([end], dtype=dtype)


def _line_blocks(file: Path) -> Iterator[list[str]]:
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            while lines := stream.readlines(BLOCK_CHARACTERS):
                yield lines
    except OSError as problem:
        raise _unreadable(file, problem) from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: is not UTF-8 text; convert it, or set [data] tokenizer = 'bytes'") from None


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _unreadable(file: Path, problem: OSError) -> UsageError:
    return UsageError(f"{file}: cannot be read ({problem.strerror}); make it readable or leave it out by [data] glob")
