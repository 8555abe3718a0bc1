"""Token sources: one long sequence of token ids, read by position, and the checks that a model can train on it.

[data] source     path             tokenizer         becomes
python-stdlib     -                bytes             this Python's own library sources, in memory
text              file             bytes             the file itself, memory-mapped
text              folder           bytes             a cached token file (uint8), memory-mapped
text              file or folder   a JSON file       a cached token file (uint16 or uint32), memory-mapped
tokens            file             -                 the file itself (uint16 or uint32, little-endian), memory-mapped
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hybrid_runtime import deployment
from hybrid_runtime.data import cache, text
from hybrid_runtime.errors import UsageError

Ids = NDArray[np.int64]
BYTE_VOCAB = 256
SCANNED_AT_ONCE = 1 << 22  # tokens; what a check holds in memory
SCANNED_IN_ADVANCE = 1 << 26  # tokens; a longer file is checked at every read instead of at the start


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


def open_source(data: deployment.Data) -> TokenSource:
    """The source that a deployment file names.

    Raises:
        UsageError: a file is missing, unreadable, empty, not text, or not a whole number of tokens.
        EnvironmentProblem: the cache folder cannot be written.
    """
    if data.source == "python-stdlib":
        return _library(data.tokenizer)
    path = Path(data.path or "").expanduser()
    if data.source == "tokens":
        return map_tokens(path, data.token_dtype, vocab_size=2 ** (8 * np.dtype(data.token_dtype).itemsize))
    files = text.text_files(path, data.glob)
    if data.tokenizer != "bytes":
        return _tokenised(str(path), files, Path(data.tokenizer).expanduser())
    if files == [path]:
        return map_tokens(path, "uint8", vocab_size=BYTE_VOCAB)
    made = cache.token_file(text.content_key(files, None), "uint8", lambda: text.byte_blocks(files))
    return map_tokens(made, "uint8", vocab_size=BYTE_VOCAB, name=str(path))


def map_tokens(path: Path, dtype: str, *, vocab_size: int, name: str | None = None) -> ArrayTokens:
    """A raw little-endian token file, memory-mapped.

    Args:
        dtype: "uint8", "uint16" or "uint32".
        name: what messages call it, if not the path.

    Raises:
        UsageError: the file cannot be read, is empty, or is not a whole number of tokens.
    """
    shown, kind = name or str(path), np.dtype(dtype).newbyteorder("<")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            ids = (
                np.memmap(file, dtype=kind, mode="r", shape=(size // kind.itemsize,)) if size >= kind.itemsize else None
            )
    except OSError as problem:
        raise UsageError(f"{shown}: cannot be read ({problem.strerror}); name a readable file in [data] path") from None
    if size % kind.itemsize:
        raise UsageError(
            f"{shown}: {size} bytes are not a whole number of {dtype} tokens ({kind.itemsize} bytes each); "
            "set [data] token_dtype to the type the file was written with, or write the file again"
        )
    if ids is None:
        raise UsageError(f"{shown}: holds no text; name a file or folder with text in [data] path")
    return ArrayTokens(shown, vocab_size, ids)


def check_source(source: TokenSource, vocab_size: int | None, sequence_length: int) -> TokenSource:
    """The source to train on: the same, or one that checks every read where scanning all of it would take long.

    Args:
        vocab_size: of the model; every id must be below it. None where it is not known (a user's own units).
        sequence_length: of one sample; its targets need one token more.

    Raises:
        UsageError: too few tokens for one sample, or an id that the model does not have.
    """
    if len(source) < sequence_length + 1:
        raise UsageError(
            f"{source.name}: holds {len(source)} tokens, but one sample needs sequence_length + 1 = "
            f"{sequence_length + 1}; give more text or a smaller [batch] sequence_length"
        )
    if vocab_size is None or source.vocab_size <= vocab_size:
        return source
    checked = InVocabulary(source, vocab_size)
    scanned = min(len(source), SCANNED_IN_ADVANCE)
    for start in range(0, scanned, SCANNED_AT_ONCE):
        checked.read(start, min(SCANNED_AT_ONCE, scanned - start))
    return source if scanned == len(source) else checked


def _library(tokenizer: str) -> TokenSource:
    if tokenizer == "bytes":
        return ArrayTokens("python-stdlib", BYTE_VOCAB, np.frombuffer(text.library_text(), dtype=np.uint8))
    return _tokenised("python-stdlib", text.library_files(), Path(tokenizer).expanduser())


def _tokenised(name: str, files: list[Path], tokenizer_file: Path) -> TokenSource:
    tokenizer = text.load_tokenizer(tokenizer_file)
    vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    key = text.content_key(files, tokenizer_file)
    made = cache.token_file(key, dtype, lambda: text.token_blocks(files, tokenizer, dtype))
    return map_tokens(made, dtype, vocab_size=vocab_size, name=name)
