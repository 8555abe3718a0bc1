"""The file that one rank writes into a checkpoint: safetensors, laid out once, filled and checksummed every time.

    8 bytes   length of the header
    header    JSON: {"model.3.mlp.down.weight[0,96]": {"dtype": "F32", "shape": [64, 96], "data_offsets": [0, 24576]}}
    data      the chunks, one after the other, as they lie in the buffer

A box is cut along its first dim into chunks of at most 16 MiB, each with a SHA-256 of its own, so whoever reads needs
no more memory than one chunk beside the tensors that it fills. Tools that know safetensors can open the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from hybrid_runtime.checkpoint.boxes import Box
from hybrid_runtime.checkpoint.manifest import Chunk, Index, SavedFile, SavedTensor
from hybrid_runtime.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHUNK_BYTES = 16 * 2**20
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


class Item(NamedTuple):
    """A box to write, by the whole tensor's name in the checkpoint, and the values: a view of the rank's own tensor."""

    box: Box
    values: Tensor


class _Slot(NamedTuple):
    """A chunk and its place in the buffer."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int
    length: int


class RankFile:
    """Layout of a rank's file, and the host memory that holds its data between the step and the disk.

    Args:
        items: what will be written, every time with the same boxes and types.
        pinned: page-locked memory, so that a GPU copies without the host.

    Raises:
        UsageError: values are of a type that safetensors does not know.
    """

    def __init__(self, items: Sequence[Item], *, pinned: bool) -> None:
        # Wide types first: then every chunk lies at a multiple of its type's size, without gaps.
        self._order = sorted(range(len(items)), key=lambda n: -items[n].values.element_size())
        self._places: list[tuple[int, int]] = []
        self._slots: list[_Slot] = []
        end = 0
        for number in self._order:
            item = items[number]
            self._places.append((end, item.values.nbytes))
            self._slots += _slots(item, end)
            end += item.values.nbytes
        self._header = _header(self._slots)
        self._data = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)

    @property
    def num_bytes(self) -> int:
        """Length of the file."""
        return len(self._header) + len(self._data)

    def fill(self, items: Sequence[Item]) -> None:
        """Copies the values as they are now; on CUDA the copies are done when this returns."""
        for number, (start, length) in zip(self._order, self._places, strict=True):
            values = items[number].values
            place = self._data[start : start + length].view(values.dtype).view(values.shape)
            place.copy_(values, non_blocking=True)
        if self._data.is_pinned():
            torch.cuda.current_stream().synchronize()

    def write(self, path: Path) -> Index:
        """Writes the file through to the disk, without holding Python's lock; returns what lies where.

        Raises:
            OSError: the disk is full, or the file cannot be written.
        """
        data = bytes_of(self._data)
        chunks: dict[str, list[Chunk]] = {}
        with path.open("wb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(self._header))
            for slot in self._slots:
                content = data[slot.start : slot.start + slot.length]
                sha256 = hashlib.sha256(content).hexdigest()
                _write_all(file.fileno(), content)
                start = len(self._header) + slot.start
                chunk = Chunk(slot.offsets, slot.sizes, path.name, start, slot.length, sha256)
                chunks.setdefault(slot.name, []).append(chunk)
            os.fsync(file.fileno())
        known = {slot.name: slot for slot in self._slots}
        tensors = {
            name: SavedTensor(dtype=DTYPES[known[name].dtype], shape=known[name].shape, chunks=tuple(of_tensor))
            for name, of_tensor in chunks.items()
        }
        header = hashlib.sha256(self._header).hexdigest()
        return Index(name=path.name, file=SavedFile(self.num_bytes, len(self._header), header), tensors=tensors)


def bytes_of(data: Tensor) -> memoryview:
    """The memory of a tensor of bytes on the host, without a copy."""
    return memoryview(cast("Buffer", data.numpy()))


def _slots(item: Item, start: int) -> Iterable[_Slot]:
    box, values = item
    assert tuple(values.shape) == box.sizes, (box, values.shape)
    if values.dtype not in DTYPES:
        raise UsageError(f"{box.name} is of type {values.dtype}, which no checkpoint can hold; use another type")
    if not box.sizes:
        yield _Slot(box.name, values.dtype, box.shape, (), (), start, values.nbytes)
        return
    row_bytes = values.nbytes // box.sizes[0]
    rows = max(1, CHUNK_BYTES // row_bytes)
    for first in range(0, box.sizes[0], rows):
        held = min(rows, box.sizes[0] - first)
        offsets, sizes = (box.offsets[0] + first, *box.offsets[1:]), (held, *box.sizes[1:])
        place = start + first * row_bytes
        yield _Slot(box.name, values.dtype, box.shape, offsets, sizes, place, held * row_bytes)


def _header(slots: Sequence[_Slot]) -> bytes:
    entries = {
        f"{slot.name}[{','.join(map(str, slot.offsets))}]": {
            "dtype": DTYPES[slot.dtype],
            "shape": slot.sizes,
            "data_offsets": [slot.start, slot.start + slot.length],
        }
        for slot in slots
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(math.ceil(len(text) / 8) * 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(number: int, content: memoryview) -> None:
    """A single write may take less than it is given."""
    while content:
        content = content[os.write(number, content) :]
