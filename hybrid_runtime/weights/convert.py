"""One Hugging Face folder into another: other files, other numbers; block by block, whatever the model's size.

Only what belongs to a model of the Llama family goes over, and every tensor of it must be there in its right shape, so
a folder that was converted is known to be whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.errors import UsageError
from hybrid_runtime.hugging_face_config import config_of, read_config, shape_from_hugging_face
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.weights.layout import MAX_FILE_BYTES, Layout, lay_out
from hybrid_runtime.weights.number_types import DTYPES, converted
from hybrid_runtime.weights.source import Source
from hybrid_runtime.weights.target import Target, files_to_copy
from hybrid_runtime.weights.tensor_file import ITEM_BYTES, blocks
from hybrid_runtime.weights.tensor_names import LM_HEAD, tensor_shapes


class Converted(NamedTuple):
    """What was written: how many tensors, their bytes, in how many files."""

    tensors: int
    tensor_bytes: int
    files: int


def convert(
    folder: Path,
    target: Path,
    *,
    dtype: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Writes the model of a folder into a new one.

    Args:
        folder: config.json, safetensors files, and what goes with them.
        target: the new folder.
        dtype: of the numbers in it, in torch's spelling; None keeps every tensor's own.
        max_file_bytes: of a file of tensors.
        progress: called with the bytes that are written and those that will be.

    Raises:
        UsageError: the source is damaged or of another model, or the target exists.
        EnvironmentProblem: the target cannot be written.
    """
    shape = shape_from_hugging_face(folder)
    with Source(folder) as source:
        output = Target(target, _layout(source, shape, dtype, max_file_bytes))
        layout = output.layout
        output.begin()
        try:
            done = 0
            for count in _written(source, output):
                done += count
                progress(done, layout.tensor_bytes)
            config = read_config(folder)
            words = config_of(shape, dtype=_main_dtype(layout), max_position_embeddings=0, source=config)
            output.finish(words, files_to_copy([folder]))
        except BaseException:
            output.discard()
            raise
    return Converted(len(layout.file_of), layout.tensor_bytes, len(layout.files))


def _layout(source: Source, shape: LlamaShape, dtype: str | None, max_file_bytes: int) -> Layout:
    shapes = tensor_shapes(shape)
    source.refuse_others({*shapes, LM_HEAD}, ("",))  # a tied model's folder may hold the weight twice
    held = {name: source.file_of(name, size).entries[name].dtype for name, size in shapes.items()}
    wanted = held if dtype is None else dict.fromkeys(held, DTYPES[dtype])
    return lay_out({name: (wanted[name], size) for name, size in shapes.items()}, max_file_bytes)


def _written(source: Source, target: Target) -> Iterator[int]:
    """Copies block by block; gives the bytes of each when it is written."""
    for file, entries in target.layout.files.items():
        with closing(target.writer(file)) as writer:
            for name, entry in entries.items():
                reader = source.file_of(name, entry.shape)
                held = reader.entries[name].dtype
                for block in blocks(entry.shape, ITEM_BYTES[held]):
                    content = memoryview(bytearray(block.size * ITEM_BYTES[held]))
                    reader.read(name, block, content)
                    try:
                        content = converted(content, held, entry.dtype)
                    except OverflowError:
                        raise UsageError(
                            f"{reader.path}: {name} has numbers too large for {entry.dtype}; choose bfloat16 or float32"
                        ) from None
                    writer.write(name, block, content)
                    yield len(content)


def _main_dtype(layout: Layout) -> str:
    """What most bytes are of, in torch's spelling."""
    count: Counter[str] = Counter()
    for entries in layout.files.values():
        for entry in entries.values():
            count[entry.dtype] += entry.nbytes
    ((most, _),) = count.most_common(1)
    return next(name for name, dtype in DTYPES.items() if dtype == most)
