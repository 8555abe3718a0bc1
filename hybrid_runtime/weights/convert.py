"""One Hugging Face folder into another: other files, other numbers; block by block, whatever the model's size.

Only what belongs to a model of the Llama family goes over, and every tensor of it must be there in its right shape, so
a folder that was converted is known to be whole. Checkpoints of trainings: `checkpoint/convert.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.errors import UsageError
from hybrid_runtime.hugging_face_config import config_of, read_config, shape_from_hugging_face
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.weights.layout import MAX_FILE_BYTES, lay_out
from hybrid_runtime.weights.number_types import DTYPES, converted
from hybrid_runtime.weights.source import Source
from hybrid_runtime.weights.target import Target, files_to_copy
from hybrid_runtime.weights.tensor_file import ITEM_BYTES, Block, blocks
from hybrid_runtime.weights.tensor_names import LM_HEAD, tensor_shapes

Progress = Callable[[int, int], None]  # is told the bytes that are written, and those that will be


class Converted(NamedTuple):
    """What was written: how many tensors, their bytes, in how many files."""

    tensors: int
    tensor_bytes: int
    files: int


def unseen(done: int, total: int) -> None:
    """Progress that nobody watches."""


def convert(
    folder: Path,
    target: Path,
    *,
    dtype: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    progress: Progress = unseen,
) -> Converted:
    """Writes the model of a folder into a new one.

    Args:
        folder: config.json, safetensors files, and what goes with them.
        target: the new folder.
        dtype: of the numbers in it, in torch's spelling; None keeps every tensor's own.
        max_file_bytes: of a file of tensors.

    Raises:
        UsageError: the source is damaged or of another model, or the target exists.
        EnvironmentProblem: the target cannot be written.
    """
    shape = shape_from_hugging_face(folder)
    with Source(folder) as source:
        held, sizes = held_types(source, shape), tensor_shapes(shape)
        wanted = held if dtype is None else dict.fromkeys(held, DTYPES[dtype])
        output = Target(target, lay_out({name: (wanted[name], sizes[name]) for name in held}, max_file_bytes))
        layout = output.layout
        main = dtype or main_dtype(wanted, sizes)
        config = config_of(shape, dtype=main, max_position_embeddings=0, source=read_config(folder))
        with output.appearing(config, files_to_copy([folder])):
            done = 0
            for count in _written(source, output):
                done += count
                progress(done, layout.tensor_bytes)
    return Converted(len(layout.file_of), layout.tensor_bytes, len(layout.files))


def held_types(source: Source, shape: LlamaShape) -> dict[str, str]:
    """The type of every tensor of a model in its folder, as safetensors spells it, by name, in the order of the model.

    Raises:
        UsageError: a tensor is missing, damaged or of another shape, or there is one that the model lacks.
    """
    shapes = tensor_shapes(shape)
    source.refuse_others({*shapes, LM_HEAD}, ("",))  # a tied model's folder may hold the weight twice
    return {name: source.file_of(name, size).entries[name].dtype for name, size in shapes.items()}


def main_dtype(types: Mapping[str, str], sizes: Mapping[str, tuple[int, ...]]) -> str:
    """What most bytes are of, in torch's spelling."""
    count: Counter[str] = Counter()
    for name, dtype in types.items():
        count[dtype] += math.prod(sizes[name]) * ITEM_BYTES[dtype]
    ((most, _),) = count.most_common(1)
    return next(name for name, dtype in DTYPES.items() if dtype == most)


def read_as(source: Source, name: str, shape: tuple[int, ...], block: Block, dtype: str) -> memoryview:
    """The bytes of a block of a tensor, its numbers in another type.

    Raises:
        UsageError: a number is too large for it, or the file cannot be read.
    """
    reader = source.file_of(name, shape)
    held = reader.entries[name].dtype
    content = memoryview(bytearray(block.size * ITEM_BYTES[held]))
    reader.read(name, block, content)
    return fitting(content, held, dtype, f"{reader.path}: {name}")


def fitting(content: memoryview, held: str, dtype: str, what: str) -> memoryview:
    """Numbers in another type, as `number_types.converted`.

    Raises:
        UsageError: one of them is too large for it.
    """
    try:
        return converted(content, held, dtype)
    except OverflowError:
        raise UsageError(f"{what} has numbers too large for {dtype}; choose bfloat16 or float32") from None


def _written(source: Source, target: Target) -> Iterator[int]:
    """Copies block by block; gives the bytes of each when it is written."""
    for file, entries in target.layout.files.items():
        with closing(target.writer(file)) as writer:
            for name, entry in entries.items():
                held = source.file_of(name, entry.shape).entries[name].dtype
                for block in blocks(entry.shape, ITEM_BYTES[held]):
                    content = read_as(source, name, entry.shape, block, entry.dtype)
                    writer.write(name, block, content)
                    yield len(content)
