"""Writes a corpus beside its name and renames it at the end, so that it appears whole or not at all.

data/.books.partial/    being written; left over where a try ended early, and gone on with by the next one
    journal.json        how far its files are right, by their checksums, and of what they were made
    lock                held by the process that writes
data/books/             finished: appears by a rename
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from hybrid_runtime.data.corpus import DOCUMENTS, HEADER, TOKENS, CorpusHeader
from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.fingerprint import differences
from hybrid_runtime.run_folder import sync, write_whole

JOURNAL, LOCK = "journal.json", "lock"
_READ_BYTES = 1 << 22


class Journal(BaseModel):
    """journal.json: a moment to which a corpus that is being written can be taken back.

    Attributes:
        made_of: what the documents come from, as text by name: only the same makes the same corpus.
        sizes, sums: by file, its first bytes that are right, and their SHA-256.
        state: of whoever adds the documents.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    made_of: dict[str, str]
    sizes: dict[str, int]
    sums: dict[str, str]
    num_tokens: int
    num_documents: int
    largest_id: int
    state: dict[str, Any]


class CorpusWriter:
    """Appends documents; `finish` gives the folder its name. Without it nothing is left but, if `note` was called and
    no input was at fault, what the next writer of the same corpus goes on with.

    Args:
        folder: must not exist yet, or be empty.
        dtype: of the ids: "uint8", "uint16" or "uint32".
        made_of: as in `Journal`.

    Attributes:
        earlier: the state that was noted last by a writer before, whose files this one goes on with; None for a new
            corpus.
        anew: why what an earlier writer left is not gone on with; "" where it is, or nothing was left.

    Raises:
        UsageError: the folder is already there.
        EnvironmentProblem: it cannot be written (every method raises it), or another process writes it.
    """

    def __init__(self, folder: Path, dtype: str, made_of: Mapping[str, str] = MappingProxyType({})) -> None:
        if folder.name in ("", ".."):
            raise UsageError(f"{folder}: names no new folder; give the path of one that does not exist yet")
        if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise UsageError(f"{folder}: already exists; name another folder, or remove it")
        self.folder = folder
        self.dtype = dtype
        self.num_tokens = self.num_documents = self.largest_id = 0
        self.earlier: dict[str, Any] | None = None
        self.anew = ""
        self._made_of = dict(made_of)
        self._partial = folder.parent / f".{folder.name}.partial"
        self._sums = {TOKENS: hashlib.sha256(), DOCUMENTS: hashlib.sha256()}
        self._files: dict[str, BinaryIO] = {}
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            self._lock = (self._partial / LOCK).open("wb")
            self._hold()
            if not self._goes_on():
                self._begin()
        except OSError as problem:
            self._give_up(problem)

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (*self._files.values(), self._lock):
            file.close()
        if isinstance(value, UsageError) or not (self._partial / JOURNAL).exists():
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, ids: NDArray[Any]) -> None:
        """Tokens of the document that is being written."""
        if ids.size:
            self.largest_id = max(self.largest_id, int(ids.max()))
            self._append(TOKENS, ids.astype(np.dtype(self.dtype).newbyteorder("<"), copy=False))

    def end_documents(self, lengths: NDArray[np.int64]) -> None:
        """Documents of these lengths, each above 0, are complete; their tokens have been added."""
        ends = self.num_tokens + np.cumsum(lengths)
        self._append(DOCUMENTS, ends.astype("<u8"))
        self.num_tokens = int(ends[-1]) if len(ends) else self.num_tokens
        self.num_documents += len(lengths)

    def note(self, state: Mapping[str, Any]) -> None:
        """From here on the next writer can go on, if this one does not come to its end.

        Args:
            state: what it needs to know; `earlier` is then equal to it. Plain JSON.
        """
        try:
            for file in self._files.values():
                file.flush()
            journal = Journal(
                made_of=self._made_of,
                sizes={name: file.tell() for name, file in self._files.items()},
                sums={name: found.hexdigest() for name, found in self._sums.items()},
                num_tokens=self.num_tokens,
                num_documents=self.num_documents,
                largest_id=self.largest_id,
                state=dict(state),
            )
            write_whole(self._partial / JOURNAL, journal.model_dump_json() + "\n")
        except OSError as problem:
            self._give_up(problem)

    def finish(
        self, *, vocab_size: int, end_of_document: int | None, tokenizer: str, tokenizer_sha256: str | None
    ) -> CorpusHeader:
        """Writes the header, waits until all of it is on the disk, and gives the folder its name."""
        header = CorpusHeader(
            dtype=self.dtype,  # type: ignore[arg-type]  # checked by the model
            vocab_size=vocab_size,
            largest_id=self.largest_id,
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            end_of_document=end_of_document,
            tokenizer=tokenizer,
            tokenizer_sha256=tokenizer_sha256,
            tokens_sha256=self._sums[TOKENS].hexdigest(),
            documents_sha256=self._sums[DOCUMENTS].hexdigest(),
        )
        try:
            for file in self._files.values():
                file.close()
            (self._partial / HEADER).write_text(header.model_dump_json(indent=2) + "\n", encoding="utf-8")
            for name in (JOURNAL, LOCK):
                (self._partial / name).unlink(missing_ok=True)
            for path in [*(self._partial / name for name in (TOKENS, DOCUMENTS, HEADER)), self._partial]:
                sync(path)
            self._partial.rename(self.folder)
            sync(self.folder.parent)
        except OSError as problem:
            self._give_up(problem)
        return header

    def _hold(self) -> None:
        """Two processes that append to the same files would spoil both corpora. Some network disks know no locks."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise EnvironmentProblem(
                f"{self.folder}: another process is writing it; wait for it, or name another folder"
            ) from None
        except OSError as problem:
            if problem.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise

    def _begin(self) -> None:
        """An empty corpus in a folder that holds nothing else."""
        for old in self._partial.iterdir():
            if old.name != LOCK:
                old.unlink()
        self._files = {name: (self._partial / name).open("wb") for name in self._sums}
        self._append(DOCUMENTS, np.zeros(1, dtype="<u8"))

    def _goes_on(self) -> bool:
        """Takes the files of an earlier writer back to the moment of its journal, if they are right up to there."""
        journal = self._journal()
        if journal is None:
            return False
        others = differences(self._made_of, journal.made_of)
        damaged = None if others else next((name for name in self._sums if not self._is_right(name, journal)), None)
        if others or damaged:
            self._sums = {name: hashlib.sha256() for name in self._sums}
            self.anew = f"it was made of something else: {others[0]}" if others else f"its {damaged} is damaged"
            return False
        for name in self._sums:
            self._files[name] = file = (self._partial / name).open("r+b")
            file.truncate(journal.sizes[name])
            file.seek(0, os.SEEK_END)
        self.num_tokens, self.num_documents = journal.num_tokens, journal.num_documents
        self.largest_id, self.earlier = journal.largest_id, journal.state
        return True

    def _journal(self) -> Journal | None:
        try:
            return Journal.model_validate_json((self._partial / JOURNAL).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            self.anew = f"its {JOURNAL} is damaged"
            return None

    def _is_right(self, name: str, journal: Journal) -> bool:
        """Whether a file begins as it did when the journal was written; its checksum then goes on from there."""
        left, path = journal.sizes.get(name, -1), self._partial / name
        if not path.is_file() or not 0 <= left <= path.stat().st_size:
            return False
        with path.open("rb") as file:
            while left and (part := file.read(min(left, _READ_BYTES))):
                self._sums[name].update(part)
                left -= len(part)
        return self._sums[name].hexdigest() == journal.sums.get(name)

    def _append(self, name: str, values: NDArray[Any]) -> None:
        content = values.tobytes()
        self._sums[name].update(content)
        try:
            self._files[name].write(content)
        except OSError as problem:
            self._give_up(problem)

    def _give_up(self, problem: OSError) -> NoReturn:
        raise EnvironmentProblem(
            f"{self.folder}: cannot be written ({problem.strerror}); free some space, or name a folder on another disk"
        ) from None
