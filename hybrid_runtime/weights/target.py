"""A folder that appears whole or not at all: written beside its name and renamed at the end.

models/.mine.partial/   being written; left over by a crash, and removed by the next try
models/mine/            finished: appears by a rename
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.hugging_face_config import CONFIG
from hybrid_runtime.run_folder import sync
from hybrid_runtime.weights.layout import Layout, header_of
from hybrid_runtime.weights.source import INDEX
from hybrid_runtime.weights.tensor_file import TensorWriter, create_file, unwritable

TOKENIZER = "tokenizer.json"
COPIED = (
    TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


class Target:
    """A Hugging Face folder to be written. Every rank may hold one; `begin` and `finish` are for one of them.

    Args:
        folder: must not exist yet, or be empty.
        layout: of its tensors.
        replaces: a folder that is there goes when the new one is whole.
    """

    def __init__(self, folder: Path, layout: Layout, *, replaces: bool = False) -> None:
        self.folder = folder
        self.layout = layout
        self._replaces = replaces
        self._partial = folder.parent / f".{folder.name}.partial"

    def refuse_unusable(self) -> None:
        """Finds out before any work is done for it.

        Raises:
            UsageError: the folder is already there.
            EnvironmentProblem: it cannot be made, or its disk has no room.
        """
        if self.folder.name in ("", ".."):
            raise UsageError(f"{self.folder}: names no new folder; give the path of one that does not exist yet")
        if os.path.lexists(self.folder) and not (self._replaces or is_empty(self.folder)):
            raise UsageError(f"{self.folder}: already exists; name another folder, or remove it")
        try:
            self._make()
            free = shutil.disk_usage(self._partial).free
            self._partial.rmdir()
        except OSError as problem:
            raise unwritable(self.folder, problem) from None
        refuse_too_full(self.folder, free, self.layout.tensor_bytes)

    def begin(self) -> None:
        """Makes the files, with headers and room for their tensors.

        Raises:
            UsageError: the folder has appeared meanwhile.
            EnvironmentProblem: they cannot be written.
        """
        self.refuse_unusable()
        try:
            self._make()
        except OSError as problem:
            raise unwritable(self._partial, problem) from None
        for file, entries in self.layout.files.items():
            create_file(self._partial / file, header_of(entries), self.layout.file_bytes(file))

    def writer(self, file: str) -> TensorWriter:
        """Opens one of the files that `begin` has made, here or on another rank."""
        return TensorWriter(self._partial / file, self.layout.files[file])

    def finish(
        self, config: Mapping[str, Any], copied: Mapping[str, Path], more: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Writes what goes with the tensors, when all of them are written, and gives the folder its name.

        Args:
            config: content of config.json.
            copied: file name in the folder -> file to copy.
            more: file name in the folder -> its text.

        Raises:
            EnvironmentProblem: something cannot be written.
        """
        index = self.layout.index()
        texts = {
            CONFIG: json.dumps(config, indent=2, sort_keys=True) + "\n",
            **({INDEX: index} if index else {}),
            **more,
        }
        try:
            for name, file in copied.items():
                shutil.copyfile(file, self._partial / name)
            for name, text in texts.items():
                (self._partial / name).write_text(text, encoding="utf-8")
            for path in [*(self._partial / name for name in (*copied, *texts)), self._partial]:
                sync(path)
            self._put_in_place()
            sync(self.folder.parent)
        except OSError as problem:
            raise unwritable(self.folder, problem) from None

    @contextmanager
    def appearing(self, config: Mapping[str, Any], copied: Mapping[str, Path]) -> Iterator[None]:
        """`begin` before a body that writes all tensors, `finish` after it; if it fails, nothing is left."""
        self.begin()
        try:
            yield
            self.finish(config, copied)
        except BaseException:
            shutil.rmtree(self._partial, ignore_errors=True)
            raise

    def _put_in_place(self) -> None:
        """A crash between the two renames leaves the folder that was there under `.NAME.before`, whole."""
        before = self.folder.with_name(f".{self.folder.name}.before")
        if not self._replaces or not self.folder.exists():
            self._partial.rename(self.folder)
            return
        shutil.rmtree(before, ignore_errors=True)
        self.folder.rename(before)
        self._partial.rename(self.folder)
        shutil.rmtree(before)

    def _make(self) -> None:
        if self._partial.exists():
            shutil.rmtree(self._partial)
        self._partial.mkdir(parents=True)


def is_empty(folder: Path) -> bool:
    """Whether it is a folder without anything in it."""
    return folder.is_dir() and not any(folder.iterdir())


def refuse_too_full(folder: Path, free: int, needed: int) -> None:
    """Whether so many bytes fit.

    Raises:
        EnvironmentProblem: they do not.
    """
    if free < needed:
        raise EnvironmentProblem(
            f"{folder}: {needed / 1e9:.2f} GB are to be written and {free / 1e9:.2f} GB are free on the disk; free "
            "some space, or name a folder on another disk"
        )


def files_to_copy(folders: list[Path], tokenizer: Path | None = None) -> dict[str, Path]:
    """Tokenizer and generation files, each from the first folder that has it; file name -> file.

    Args:
        tokenizer: a `tokenizers` JSON file, for where no folder has one.
    """
    found = {name: folder / name for name in COPIED for folder in reversed(folders) if (folder / name).is_file()}
    return ({} if tokenizer is None else {TOKENIZER: tokenizer}) | found
