"""Token sources: one long sequence of token ids, read by position; files of them are memory-mapped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hybrid_runtime.errors import UsageError

Ids = NDArray[np.int64]


class TokenSource(Protocol):
    """A long sequence of token ids.

    Attributes:
        name: where it comes from, for messages: a path or "python-stdlib".
        vocab_size: every id is below it.
    """

    @property
    def name(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, start: int, length: int) -> Ids:
        """(length,) int64 ids from position `start`, which must lie inside the source; a copy."""


class Content(NamedTuple):
    """What a source holds: equal contents, equal tokens."""

    num_tokens: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.num_tokens} tokens of SHA-256 {self.sha256[:16]}"


@dataclass(frozen=True, slots=True)
class ArrayTokens:
    """A source that is one array of unsigned integers, in memory or memory-mapped."""

    name: str
    vocab_size: int
    ids: NDArray[Any]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, length: int) -> Ids:
        assert 0 <= start <= start + length <= len(self.ids), (start, length, len(self.ids))
        return self.ids[start : start + length].astype(np.int64)


@dataclass(frozen=True, slots=True)
class InVocabulary:
    """A source whose ids are compared with the model's vocabulary at every read (see `check_source`)."""

    source: TokenSource
    vocab_size: int

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    def read(self, start: int, length: int) -> Ids:
        """As the source's.

        Raises:
            UsageError: an id does not exist in the model.
        """
        ids = self.source.read(start, length)
        if ids.size and int(ids.max()) >= self.vocab_size:
            at = int(np.argmax(ids >= self.vocab_size))
            raise UsageError(
                f"{self.name}: token {start + at} has id {int(ids[at])}, but the model's vocab_size is "
                f"{self.vocab_size}; use this model's tokenizer, the right [data] token_dtype, or a larger vocab_size"
            )
        return ids


def map_tokens(path: Path, dtype: str, *, vocab_size: int, name: str | None = None) -> ArrayTokens:
    """A raw little-endian token file, memory-mapped.

    Args:
        dtype: "uint8", "uint16" or "uint32".
        name: what messages call it, if not the path.

    Raises:
        UsageError: the file cannot be read, is empty, or is not a whole number of tokens.
    """
    shown = name or str(path)
    ids, size = map_file(path, dtype, name=shown)
    item_bytes = np.dtype(dtype).itemsize
    if size % item_bytes:
        raise UsageError(
            f"{shown}: {size} bytes are not a whole number of {dtype} tokens ({item_bytes} bytes each); "
            "set [data] token_dtype to the type the file was written with, or write the file again"
        )
    if ids is None:
        raise UsageError(f"{shown}: holds no text; name a file or folder with text in [data] path")
    return ArrayTokens(shown, vocab_size, ids)


def map_file(path: Path, dtype: str, *, name: str | None = None) -> tuple[NDArray[Any] | None, int]:
    """The little-endian numbers of a file, memory-mapped, and its size in bytes; None instead of no numbers.

    Args:
        name: what messages call it, if not the path.

    Raises:
        UsageError: the file cannot be read.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            count = size // kind.itemsize
            return (np.memmap(file, dtype=kind, mode="r", shape=(count,)) if count else None), size
    except OSError as problem:
        raise UsageError(
            f"{name or path}: cannot be read ({problem.strerror}); name a readable file in [data] path"
        ) from None
