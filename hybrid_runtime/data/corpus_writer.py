"""Writes a corpus beside its name and renames it at the end, so that it appears whole or not at all.

data/.books.partial/    being written; left over by a crash, and removed by the next try
data/books/             finished: appears by a rename
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hybrid_runtime.data.corpus import DOCUMENTS, HEADER, TOKENS, CorpusHeader
from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.run_folder import sync


class CorpusWriter:
    """Appends documents; `finish` gives the folder its name, and without it `close` leaves nothing.

    Args:
        folder: must not exist yet, or be empty.
        dtype: of the ids: "uint8", "uint16" or "uint32".

    Raises:
        UsageError: the folder is already there.
        EnvironmentProblem: it cannot be written (every method raises it).
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        if folder.name in ("", ".."):
            raise UsageError(f"{folder}: names no new folder; give the path of one that does not exist yet")
        if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise UsageError(f"{folder}: already exists; name another folder, or remove it")
        self.folder = folder
        self.dtype = dtype
        self.num_tokens = self.num_documents = self.largest_id = 0
        self._partial = folder.parent / f".{folder.name}.partial"
        self._sums = {TOKENS: hashlib.sha256(), DOCUMENTS: hashlib.sha256()}
        try:
            if self._partial.exists():
                shutil.rmtree(self._partial)
            self._partial.mkdir(parents=True)
            self._files = {name: (self._partial / name).open("wb") for name in self._sums}
        except OSError as problem:
            self._give_up(problem)
        self._append(DOCUMENTS, np.zeros(1, dtype="<u8"))

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
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
            for path in [*(self._partial / name for name in (TOKENS, DOCUMENTS, HEADER)), self._partial]:
                sync(path)
            self._partial.rename(self.folder)
            sync(self.folder.parent)
        except OSError as problem:
            self._give_up(problem)
        return header

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
