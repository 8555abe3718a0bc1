"""A corpus: a folder of token ids with an index of its documents, memory-mapped, of any size.

    corpus.json     header: what the other two files hold, by whom it was made, and their checksums; written last
    tokens.bin      the ids of all documents, one document after the other, little-endian
    documents.bin   where each document begins, and where the last one ends: num_documents + 1 uint64, little-endian

`hybrid-runtime tokenize` writes one. The folder appears whole or not at all, so one that has its header was finished.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hybrid_runtime.data.tokens import Ids, TokenSource, map_file
from hybrid_runtime.errors import UsageError

HEADER, TOKENS, DOCUMENTS = "corpus.json", "tokens.bin", "documents.bin"
FORMAT = "hybrid_runtime corpus 1"
PROVED_BYTES = 1 << 27  # a smaller corpus has its checksums proved whenever it is opened: some tenths of a second
INDEX_AT_ONCE = 1 << 22  # documents whose order is looked at in one piece
INDEX_IN_ADVANCE = 1 << 25  # documents whose order is looked at when a corpus is opened; others when they are read
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class CorpusHeader(BaseModel):
    """corpus.json.

    Attributes:
        vocab_size: of the tokenizer; every id is below it.
        largest_id: the largest id that really occurs.
        end_of_document: the id behind every document; None if there is none.
        tokenizer: "bytes", or the name of the tokenizer's file.
        tokenizer_sha256: of that file; None for bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["hybrid_runtime corpus 1"] = "hybrid_runtime corpus 1"
    dtype: Literal["uint8", "uint16", "uint32"]
    vocab_size: int = Field(ge=1, le=2**32)
    largest_id: int = Field(ge=0, lt=2**32)
    num_tokens: int = Field(ge=0)
    num_documents: int = Field(ge=0)
    end_of_document: int | None = None
    tokenizer: str
    tokenizer_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    tokens_sha256: str = Sha256
    documents_sha256: str = Sha256


@runtime_checkable
class DocumentSource(TokenSource, Protocol):
    """A token source that knows where its documents begin."""

    def document_starts(self, start: int, stop: int) -> Ids:
        """Positions in [start, stop) at which a document begins, in order."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """An opened corpus.

    Attributes:
        offsets: (num_documents + 1,) where documents begin, and where the last one ends.
    """

    name: str
    header: CorpusHeader
    ids: NDArray[Any]
    offsets: NDArray[Any]

    @property
    def vocab_size(self) -> int:
        """Above every id that occurs: what a model needs at least."""
        return self.header.largest_id + 1

    @property
    def num_documents(self) -> int:
        return self.header.num_documents

    def __len__(self) -> int:
        return self.header.num_tokens

    def read(self, start: int, length: int) -> Ids:
        """As `TokenSource.read`.

        Raises:
            UsageError: an id is larger than the header says.
        """
        assert 0 <= start <= start + length <= len(self), (start, length, len(self))
        ids: Ids = self.ids[start : start + length].astype(np.int64)
        if ids.size and int(ids.max()) > self.header.largest_id:
            raise _damaged(self.name, f"an id of {TOKENS} from token {start} on is above the header's largest_id")
        return ids

    def document_starts(self, start: int, stop: int) -> Ids:
        """As `DocumentSource.document_starts`.

        Raises:
            UsageError: the index is out of order there.
        """
        first, last = (int(np.searchsorted(self.offsets, np.uint64(at), side="left")) for at in (start, stop))
        starts: Ids = self.offsets[first : min(last, self.num_documents)].astype(np.int64)
        if starts.size and (starts[0] < start or starts[-1] >= stop or (np.diff(starts) <= 0).any()):
            raise _damaged(self.name, f"{DOCUMENTS} is out of order at document {first}")
        return starts


def is_corpus(path: Path) -> bool:
    """Whether a folder says that it is one."""
    return (path / HEADER).is_file()


def open_corpus(path: Path) -> Corpus:
    """Maps a corpus and proves what can be proved at once.

    Raises:
        UsageError: it is missing, empty, not whole, or damaged.
    """
    header = read_header(path)
    if not header.num_tokens or not header.num_documents:
        raise UsageError(f"{path}: is an empty corpus; tokenize files that hold text")
    ids = _mapped(path / TOKENS, header.dtype, header.num_tokens)
    offsets = _mapped(path / DOCUMENTS, "uint64", header.num_documents + 1)
    if int(offsets[0]) != 0 or int(offsets[-1]) != header.num_tokens:
        raise _damaged(str(path), f"{DOCUMENTS} says that documents lie from token {offsets[0]} to {offsets[-1]}, "
                       f"and {TOKENS} holds {header.num_tokens}")  # fmt: skip
    for start in range(0, min(header.num_documents, INDEX_IN_ADVANCE), INDEX_AT_ONCE):
        piece = offsets[start : start + INDEX_AT_ONCE + 1]
        if (piece[1:] <= piece[:-1]).any():
            at = start + int(np.argmax(piece[1:] <= piece[:-1]))
            raise _damaged(str(path), f"in {DOCUMENTS}, document {at} ends before it begins")
    corpus = Corpus(str(path), header, ids, offsets)
    if ids.nbytes + offsets.nbytes <= PROVED_BYTES:
        prove(path, header)
    return corpus


def read_header(path: Path) -> CorpusHeader:
    """The header of a corpus.

    Raises:
        UsageError: there is none, or it is none of this version.
    """
    file = path / HEADER
    try:
        return CorpusHeader.model_validate_json(file.read_bytes())
    except OSError as problem:
        what = "is no folder" if not path.is_dir() else f"has no readable {HEADER} ({problem.strerror})"
        raise UsageError(
            f"{path}: {what}, so it is no finished corpus; make one with `hybrid-runtime tokenize`, on a disk that "
            "every machine of the run sees under this name"
        ) from None
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise _damaged(str(path), f"in {HEADER}, {where} is not what {FORMAT!r} has there") from None


def prove(path: Path, header: CorpusHeader) -> None:
    """Reads both files whole and compares their checksums.

    Raises:
        UsageError: a file is not what was written.
    """
    for name, wanted in ((TOKENS, header.tokens_sha256), (DOCUMENTS, header.documents_sha256)):
        try:
            with (path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as problem:
            raise UsageError(f"{path / name}: cannot be read ({problem.strerror}); make it readable") from None
        if found != wanted:
            raise _damaged(str(path), f"{name} has another checksum than the header says")


def _mapped(path: Path, dtype: str, count: int) -> NDArray[Any]:
    mapped, size = map_file(path, dtype)
    wanted = count * np.dtype(dtype).itemsize
    if mapped is None or size != wanted:
        raise _damaged(str(path.parent), f"{path.name} has {size} bytes, and {HEADER} says {count} of {dtype}, which "
                       f"are {wanted}")  # fmt: skip
    return mapped


def _damaged(name: str, what: str) -> UsageError:
    return UsageError(f"{name}: the corpus is damaged: {what}; copy it again, or tokenize the text again")
