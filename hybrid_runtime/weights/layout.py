"""Which tensor lies where in a folder that is to be written: known before any byte is, from names and shapes alone.

Every rank computes the same layout, so each can write its parts of a tensor without asking another.

    model-00001-of-00002.safetensors   header | embed_tokens | layers.0 ... |
    model-00002-of-00002.safetensors   header | ... | norm | lm_head |
    model.safetensors.index.json       {"weight_map": {tensor: file}}           a single file has no index
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from hybrid_runtime.weights.source import SINGLE
from hybrid_runtime.weights.tensor_file import ITEM_BYTES, Entry

MAX_FILE_BYTES = 5 * 10**9  # transformers' own default up to 4.x
_HEADER_BYTES_PER_TENSOR = 200  # beside its name; more than any entry needs


@dataclass(frozen=True, slots=True)
class Layout:
    """Attributes:
    files: per file name, its tensors in the order in which they lie there.
    """

    files: Mapping[str, Mapping[str, Entry]]

    @property
    def tensor_bytes(self) -> int:
        """Of all tensors, without headers."""
        return sum(entry.nbytes for entries in self.files.values() for entry in entries.values())

    @property
    def file_of(self) -> dict[str, str]:
        """Tensor -> file."""
        return {name: file for file, entries in self.files.items() for name in entries}

    def file_bytes(self, file: str) -> int:
        """Length of a file."""
        return max(entry.offset + entry.nbytes for entry in self.files[file].values())

    def index(self) -> str | None:
        """Content of the index; None where there is one file."""
        if len(self.files) == 1:
            return None
        weight_map = dict(sorted(self.file_of.items()))
        return json.dumps({"metadata": {"total_size": self.tensor_bytes}, "weight_map": weight_map}, indent=2) + "\n"


def lay_out(tensors: Mapping[str, tuple[str, tuple[int, ...]]], max_file_bytes: int = MAX_FILE_BYTES) -> Layout:
    """Tensors in this order over as few files as the limit allows; one that is larger alone gets a file of its own.

    Args:
        tensors: name -> (dtype, shape), at least one.
        max_file_bytes: of a file, header included.
    """
    groups: list[list[str]] = [[]]
    used = 0
    for name, (dtype, shape) in tensors.items():
        needed = ITEM_BYTES[dtype] * math.prod(shape) + len(name) + _HEADER_BYTES_PER_TENSOR
        if groups[-1] and used + needed > max_file_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += needed
    count = len(groups)
    names = [SINGLE] if count == 1 else [f"model-{k + 1:05d}-of-{count:05d}.safetensors" for k in range(count)]
    return Layout({file: _placed({name: tensors[name] for name in group}) for file, group in zip(names, groups)})


def header_of(entries: Mapping[str, Entry]) -> bytes:
    """The bytes of a file before its tensors."""
    first = min(entry.offset for entry in entries.values())
    return _header({name: entry._replace(offset=entry.offset - first) for name, entry in entries.items()})


def _placed(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Wider types first, so that every tensor is aligned to its own type."""
    order = sorted(tensors, key=lambda name: -ITEM_BYTES[tensors[name][0]])
    entries: dict[str, Entry] = {}
    offset = 0
    for name in order:
        dtype, shape = tensors[name]
        entries[name] = Entry(dtype, shape, offset, math.prod(shape) * ITEM_BYTES[dtype])
        offset += entries[name].nbytes
    first = len(_header(entries))
    return {name: entry._replace(offset=first + entry.offset) for name, entry in entries.items()}


def _header(entries: Mapping[str, Entry]) -> bytes:
    """`entries` with offsets from the first tensor on. transformers asks for the format in the metadata."""
    values: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, entry in entries.items():
        offsets = [entry.offset, entry.offset + entry.nbytes]
        values[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(values, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
