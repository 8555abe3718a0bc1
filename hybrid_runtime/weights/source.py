"""A folder of safetensors files to read from: one file, or several and an index of which tensor is where."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType

from hybrid_runtime.errors import UsageError
from hybrid_runtime.weights.tensor_file import FLOATS, TensorReader

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_NO_WEIGHTS = ("rotary_emb.inv_freq",)  # some older folders keep what follows from their sizes


class Source:
    """The tensors of a folder by name; files are opened when first needed, and closed at the end of a `with`.

    Raises:
        UsageError: it is no folder, or holds no safetensors files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._open: dict[str, TensorReader] = {}
        self._file_of = _index(folder)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def where(self) -> Path:
        """The file that says which tensors there are."""
        return self._folder / (SINGLE if self._file_of is None else INDEX)

    def names(self) -> Collection[str]:
        """Of all tensors."""
        return self._file(SINGLE).entries.keys() if self._file_of is None else self._file_of.keys()

    def file_of(self, name: str, shape: tuple[int, ...]) -> TensorReader:
        """The file that holds a tensor.

        Args:
            shape: that it must have.

        Raises:
            UsageError: it is missing, of another shape, or not of floating-point numbers.
        """
        if self._file_of is not None and name not in self._file_of:
            raise UsageError(f"{self.where}: names no tensor {name}; the weights are of another model")
        file = self._file(SINGLE if self._file_of is None else self._file_of[name])
        entry = file.entries.get(name)
        if entry is None:
            raise UsageError(f"{file.path}: holds no tensor {name}; the weights are of another model, or incomplete")
        if entry.shape != shape:
            raise UsageError(
                f"{file.path}: {name} has shape {entry.shape}, the model needs {shape}; correct the model's sizes"
            )
        if entry.dtype not in FLOATS:
            raise UsageError(
                f"{file.path}: {name} is of type {entry.dtype}, not one of {', '.join(FLOATS)}; quantised weights "
                "cannot be read, download the model's original ones"
            )
        return file

    def refuse_others(self, known: Collection[str], prefixes: tuple[str, ...]) -> None:
        """A tensor that the model lacks (a bias, a norm) would be left out in silence, and another model be run.

        Args:
            known: tensors that there may be.
            prefixes: of names that no others may begin with.

        Raises:
            UsageError: there is another.
        """
        for name in self.names():
            if name.startswith(prefixes) and name not in known and not name.endswith(_NO_WEIGHTS):
                raise UsageError(f"{self.where}: has a tensor {name} that the model lacks; correct its config.json")

    def _file(self, name: str) -> TensorReader:
        if name not in self._open:
            self._open[name] = self._stack.enter_context(closing(TensorReader(self._folder / name)))
        return self._open[name]


def _index(folder: Path) -> dict[str, str] | None:
    """Tensor name -> file name; None for a folder with one file."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: is not a folder; model.weights names a folder of safetensors files")
    path = folder / INDEX
    if not path.exists():
        if not (folder / SINGLE).exists():
            raise UsageError(f"{folder}: holds neither {SINGLE} nor {INDEX}; only safetensors weights can be read")
        return None
    try:
        files: dict[str, str] = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        outside = next((file for file in files.values() if Path(file).name != file), None)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise UsageError(f"{path}: is not a usable index ({problem!r:.200}); download it again") from None
    if outside is not None:
        raise UsageError(f"{path}: is not a usable index ({outside!r:.80} is no file beside it); download it again")
    return files
