"""The safetensors format, read and written in parts: any rows and columns of a tensor, at their place in the file.

    8 bytes   length n of the header, little endian
    n bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}, padded with spaces
    rest      the tensors, one after the other without gaps, row by row

The library of that name maps files into memory, so what a process has read of them counts as its memory, and it writes
whole files only. Here bytes go straight from the file into the caller's buffer and back, so that several ranks can
write one file, each its own parts (files are opened for writing only and never written twice at one place).

Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_runtime.errors import EnvironmentProblem, UsageError

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
BLOCK_BYTES = 16 * 2**20  # read, converted and written at once
_MAX_HEADER_BYTES = 100_000_000  # as the library
_GIT_LFS = b"version https://git-lfs"


class Entry(NamedTuple):
    """One tensor of a file.

    Attributes:
        dtype: in the format's spelling ("F32", "BF16").
        offset: of its first byte in the file.
        nbytes: of the whole tensor.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Block(NamedTuple):
    """Rows start .. stop and columns first .. last of a tensor (ends not included); a vector has one column.

    A tensor of more than two dims counts as a matrix of shape[0] rows.
    """

    start: int
    stop: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Elements."""
        return (self.stop - self.start) * (self.last - self.first)


def blocks(
    shape: tuple[int, ...], item_bytes: int, *, dim: int = 0, part: tuple[int, int] | None = None
) -> list[Block]:
    """What covers a part of a tensor, in order, in blocks of at most BLOCK_BYTES or one row.

    Args:
        dim: along which the part is cut, 0 or 1.
        part: start and stop along dim; None for the whole tensor.
    """
    rows, columns = shape[0] if shape else 1, math.prod(shape[1:])
    start, stop = part if part is not None and dim == 0 else (0, rows)
    first, last = part if part is not None and dim == 1 else (0, columns)
    step = max(1, BLOCK_BYTES // max(1, (last - first) * item_bytes))
    return [Block(row, min(row + step, stop), first, last) for row in range(start, stop, step)]


def read_entries(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name, from its header.

    Raises:
        UsageError: there is no such file, or its bytes are not what the format says.
    """
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            begin = file.read(8)
            header_bytes = int.from_bytes(begin, "little")
            if len(begin) < 8 or begin == _GIT_LFS[:8] or header_bytes > min(length - 8, _MAX_HEADER_BYTES):
                raise _unreadable(path, _why_no_header(begin, length))
            text = file.read(header_bytes)
    except FileNotFoundError:
        raise UsageError(f"{path}: does not exist; download all files of the model") from None
    except OSError as problem:
        raise _unreadable(path, problem.strerror or str(problem)) from None
    try:
        header = json.loads(text)
        return {n: _entry(n, e, 8 + header_bytes, length) for n, e in header.items() if n != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise _unreadable(path, str(problem)) from None


def _why_no_header(begin: bytes, length: int) -> str:
    if begin == _GIT_LFS[:8]:
        return "it is a pointer of git-lfs; git lfs pull fetches the file"
    return f"its {length} bytes hold no header"


def _unreadable(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path}: is not a readable safetensors file ({reason}); download it again")


def _entry(name: str, values: Mapping[str, Any], data_offset: int, file_bytes: int) -> Entry:
    """Raises ValueError, KeyError or TypeError where the header contradicts itself or the file."""
    dtype, shape, (begin, end) = values["dtype"], values["shape"], values["data_offsets"]
    numbers = [*shape, begin, end]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**62 for n in numbers) or begin > end:
        raise ValueError(f"{name} has the shape {shape!r:.60} and the offsets {begin!r:.20}, {end!r:.20}")
    if dtype in ITEM_BYTES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name} of {dtype} and shape {shape} has {end - begin} bytes")
    if data_offset + end > file_bytes:
        raise ValueError(f"it ends after {file_bytes} bytes, inside {name}")
    return Entry(str(dtype), tuple(shape), data_offset + begin, end - begin)


class TensorReader:
    """An open file to read from.

    Raises:
        UsageError: as `read_entries`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = read_entries(path)
        self._file = os.open(path, os.O_RDONLY)

    def read(self, name: str, block: Block, into: memoryview) -> None:
        """Fills a buffer of bytes with a block of a tensor.

        Raises:
            UsageError: the file has become shorter or cannot be read.
        """
        for offset, place in _runs(self.entries[name], block):
            target = into[place]
            while target:
                try:
                    count = os.preadv(self._file, [target], offset)
                except OSError as problem:
                    raise _unreadable(self.path, problem.strerror or str(problem)) from None
                if count == 0:
                    raise _unreadable(self.path, f"it ends inside {name}")
                target, offset = target[count:], offset + count

    def close(self) -> None:
        os.close(self._file)


class TensorWriter:
    """A file that `create_file` has made, to write parts of its tensors into.

    Raises:
        EnvironmentProblem: the file cannot be opened; on several machines, because they share no disk.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.path = path
        self._entries = entries
        try:
            self._file = os.open(path, os.O_WRONLY)
        except OSError as problem:
            raise EnvironmentProblem(
                f"{path}: cannot be opened for writing ({problem.strerror}); the folder must be on a disk that all "
                "machines share"
            ) from None

    def write(self, name: str, block: Block, content: memoryview) -> None:
        """Writes the bytes of a block of a tensor.

        Raises:
            EnvironmentProblem: they cannot be written, for example because the disk is full.
        """
        for offset, place in _runs(self._entries[name], block):
            rest = content[place]
            while rest:
                try:
                    count = os.pwrite(self._file, rest, offset)
                except OSError as problem:
                    raise unwritable(self.path, problem) from None
                rest, offset = rest[count:], offset + count

    def close(self) -> None:
        """Everything written is on the disk then.

        Raises:
            EnvironmentProblem: it cannot be.
        """
        try:
            os.fsync(self._file)
        except OSError as problem:
            raise unwritable(self.path, problem) from None
        finally:
            os.close(self._file)


def unwritable(path: Path, problem: OSError) -> EnvironmentProblem:
    """The error of a file that cannot be written."""
    return EnvironmentProblem(
        f"{path}: cannot be written ({problem.strerror}); free some space, or name a folder that can be written"
    )


def create_file(path: Path, header: bytes, nbytes: int) -> None:
    """A file with its header and room for `nbytes` in all.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    try:
        with path.open("xb") as file:
            file.write(header)
            file.truncate(nbytes)
    except OSError as problem:
        raise unwritable(path, problem) from None


def _runs(entry: Entry, block: Block) -> Iterator[tuple[int, slice]]:
    """(offset in the file, place in the block's bytes) of what lies together: all of whole rows, else row by row."""
    item, columns = ITEM_BYTES[entry.dtype], math.prod(entry.shape[1:])
    width = (block.last - block.first) * item
    if block.last - block.first == columns:
        yield entry.offset + block.start * width, slice(0, (block.stop - block.start) * width)
        return
    for k, row in enumerate(range(block.start, block.stop)):
        yield entry.offset + (row * columns + block.first) * item, slice(k * width, (k + 1) * width)
