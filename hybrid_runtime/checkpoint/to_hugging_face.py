"""The model of a checkpoint as a Hugging Face folder, chunk by chunk, without torch.

step-00000100/   model.3.mlp.gate_up.weight  ->  models/mine/   model.layers.3.mlp.gate_proj.weight
                                                                model.layers.3.mlp.up_proj.weight
                 optimizer.master.3.mlp.gate_up.weight    instead of it, where a bfloat16 model leaves as float32
                 optimizer..., random...         stay behind
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from hybrid_runtime.checkpoint.chunks import checked_chunks
from hybrid_runtime.checkpoint.manifest import Chunk, Manifest, read_manifest
from hybrid_runtime.checkpoint.model_words import (
    DTYPE,
    LENGTH,
    MASTERS,
    MODEL,
    WEIGHTS,
    shape_of_words,
    whole_shape,
)
from hybrid_runtime.errors import UsageError
from hybrid_runtime.hugging_face_config import CONFIG, config_of, dtype_of_config, read_config
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.weights.convert import Converted, Progress, fitting, unseen
from hybrid_runtime.weights.layout import MAX_FILE_BYTES, lay_out
from hybrid_runtime.weights.number_types import DTYPES
from hybrid_runtime.weights.target import Target, files_to_copy
from hybrid_runtime.weights.tensor_file import ITEM_BYTES, Block
from hybrid_runtime.weights.tensor_names import Part, joined_tensors, tensor_shapes


def to_hugging_face(
    checkpoint: Path,
    target: Path,
    *,
    like: Path | None = None,
    dtype: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    progress: Progress = unseen,
) -> Converted:
    """Writes the model of a checkpoint, whatever mesh wrote it, into a new folder that transformers loads.

    Args:
        checkpoint: one, `.../step-00000100`.
        like: the folder that the model came from: what its config.json says beside sizes is kept, its tokenizer
            copied. None takes those that the training named, as far as they are still there.
        dtype: of the numbers in the folder, in torch's spelling; None keeps the model's, or makes float32 where the
            model has float32 master copies and the folder that it came from was float32. What is not the model's own
            is made from the master copies, as far as there are some.
        max_file_bytes: of a file of tensors.

    Raises:
        CheckpointError: the checkpoint is damaged; no folder appears then.
        UsageError: it is of a model that transformers does not have, or the target exists.
        EnvironmentProblem: the target cannot be written.
    """
    manifest = read_manifest(checkpoint)
    shape = _shape_of(checkpoint, manifest)
    joined = joined_tensors(shape)
    parts = {f"{WEIGHTS}{name}": parts for name, parts in joined.items()}
    _refuse_incomplete(checkpoint, manifest, WEIGHTS, parts)
    sources = [like] if like is not None else _origin(manifest)
    source = next((read_config(folder) for folder in sources if (folder / CONFIG).is_file()), None)
    has_masters = any(name.startswith(MASTERS) for name in manifest.tensors)
    wanted = dtype or _default_dtype(manifest, source, has_masters=has_masters)
    if has_masters and wanted != manifest.training[DTYPE]:
        parts = {f"{MASTERS}{name}": parts for name, parts in joined.items()}
        _refuse_incomplete(checkpoint, manifest, MASTERS, parts)
    sizes = {name: (DTYPES[wanted], size) for name, size in tensor_shapes(shape).items()}
    if source is None and LENGTH not in manifest.training:
        raise UsageError(
            f"{checkpoint}: was made from a folder that is gone and says nothing of the longest sequence; name the "
            "model's folder with --like FOLDER"
        )
    length = int(manifest.training.get(LENGTH, 0))
    config = config_of(shape, dtype=wanted, max_position_embeddings=length, source=source)
    tokenizer = Path(manifest.origin.get("data.tokenizer", ""))
    copied = files_to_copy(sources, tokenizer if like is None and tokenizer.is_file() else None)
    output = Target(target, lay_out(sizes, max_file_bytes))
    with output.appearing(config, copied):
        done = 0
        for count in _unpacked(checkpoint, manifest, parts, output):
            done += count
            progress(done, output.layout.tensor_bytes)
    return Converted(len(sizes), output.layout.tensor_bytes, len(output.layout.files))


def _shape_of(checkpoint: Path, manifest: Manifest) -> LlamaShape:
    shape = shape_of_words(manifest.training.get(MODEL, ""))
    if shape is None:
        raise UsageError(
            f"{checkpoint}: is of a model of your own units, which transformers does not have; read it with "
            "torch.distributed.checkpoint and hybrid_runtime.checkpoint.reader.CheckpointReader"
        )
    return shape


def _default_dtype(manifest: Manifest, source: Mapping[str, Any] | None, *, has_masters: bool) -> str:
    """A model that came as float32 and was trained in bfloat16 beside float32 copies leaves as it came."""
    came_as = None if source is None else dtype_of_config(source)
    return "float32" if has_masters and came_as == "float32" else manifest.training[DTYPE]


def _refuse_incomplete(checkpoint: Path, manifest: Manifest, prefix: str, parts: Mapping[str, Sequence[Part]]) -> None:
    """Whether the checkpoint holds exactly the model that it says it holds."""
    held = {name: tensor for name, tensor in manifest.tensors.items() if name.startswith(prefix)}
    for name in {**parts, **held}:
        shape = whole_shape(parts[name]) if name in parts else None
        tensor = held.get(name)
        number = 0 if tensor is None else sum(math.prod(chunk.sizes) for chunk in tensor.chunks)
        if tensor is None or tensor.shape != shape or number != math.prod(tensor.shape):
            raise UsageError(
                f"{checkpoint}: {name} is {'missing' if tensor is None else list(tensor.shape)} where a model of its "
                f"sizes has {'none' if shape is None else list(shape)}; it is of another version of this package"
            )


def _origin(manifest: Manifest) -> list[Path]:
    """The folders that the training named for its model: config first."""
    named = [manifest.origin[key] for key in ("model.hf_config", "model.weights") if key in manifest.origin]
    paths = [Path(name) for name in named]
    return [path.parent if path.name == CONFIG else path for path in paths]


def _unpacked(
    checkpoint: Path, manifest: Manifest, parts: Mapping[str, Sequence[Part]], target: Target
) -> Iterator[int]:
    """Puts every chunk in its places; gives the bytes of each when they are written."""
    wanted = {chunk: name for name in parts for chunk in manifest.tensors[name].chunks}
    files, file_of = target.layout.files, target.layout.file_of
    with ExitStack() as stack:
        writers = {file: stack.enter_context(closing(target.writer(file))) for file in files}
        for chunk, content in checked_chunks(checkpoint, manifest.files, wanted):
            held = manifest.tensors[wanted[chunk]].dtype
            for part in parts[wanted[chunk]]:
                file = file_of[part.name]
                block, its = _overlap(chunk, part, content, ITEM_BYTES[held])
                if block.size:
                    numbers = fitting(its, held, files[file][part.name].dtype, f"{checkpoint}: {part.name}")
                    writers[file].write(part.name, block, numbers)
                    yield len(numbers)


def _overlap(chunk: Chunk, part: Part, content: memoryview, item_bytes: int) -> tuple[Block, memoryview]:
    """What a chunk of the parameter holds of one of its tensors: which block, and its bytes."""
    rows, row = chunk.sizes[0], chunk.offsets[0]
    first, columns = (chunk.offsets[1], chunk.sizes[1]) if len(chunk.sizes) > 1 else (0, 1)
    start = min(max(row, part.first), row + rows)
    stop = max(start, min(row + rows, part.first + part.shape[0]))
    width = columns * item_bytes
    block = Block(start - part.first, stop - part.first, first, first + columns)
    return block, content[(start - row) * width : (stop - row) * width]
