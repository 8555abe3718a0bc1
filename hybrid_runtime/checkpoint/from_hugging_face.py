"""A Hugging Face folder as the checkpoint of step 0, block by block, without torch: a training may begin from it.

models/mine/   every tensor of the model  ->  checkpoints/mine/step-00000000/   parameters; no optimizer's state
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from hybrid_runtime.checkpoint import folders
from hybrid_runtime.checkpoint.manifest import Chunk, Manifest, SavedFile, SavedTensor
from hybrid_runtime.checkpoint.model_words import DTYPE, MODEL, whole_shape, words_of_shape
from hybrid_runtime.errors import UsageError
from hybrid_runtime.hugging_face_config import shape_from_hugging_face
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.telemetry.host import installed_versions
from hybrid_runtime.weights.convert import Converted, Progress, held_types, main_dtype, read_as, unseen
from hybrid_runtime.weights.layout import MAX_FILE_BYTES, Layout, header_of, lay_out
from hybrid_runtime.weights.number_types import DTYPES
from hybrid_runtime.weights.source import Source
from hybrid_runtime.weights.target import is_empty, refuse_too_full
from hybrid_runtime.weights.tensor_file import ITEM_BYTES, Block, TensorWriter, blocks, create_file
from hybrid_runtime.weights.tensor_names import joined_tensors, tensor_shapes

TRAINED_IN = ("float32", "bfloat16")


def from_hugging_face(
    folder: Path,
    checkpoints: Path,
    *,
    dtype: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    progress: Progress = unseen,
) -> Converted:
    """Writes the model of a folder as the checkpoint of step 0, from which `run --resume` begins a training.

    It holds weights alone: the optimizer begins anew, and any seed, data and batch go with it.

    Args:
        folder: config.json and safetensors files.
        checkpoints: the folder of checkpoints to be; it must hold none.
        dtype: that the model will be trained in, in torch's spelling; None for what the folder has most of.
        max_file_bytes: of a file of tensors.

    Raises:
        UsageError: the source is damaged or of another model, or there are checkpoints already.
        EnvironmentProblem: the target cannot be written.
    """
    shape = shape_from_hugging_face(folder)
    if there := folders.whole(checkpoints):
        raise UsageError(f"{checkpoints}: already holds checkpoints, the newest {there[-1].name}; name another folder")
    with Source(folder) as source:
        held = held_types(source, shape)
        trained_in = dtype or main_dtype(held, tensor_shapes(shape))
        if trained_in not in TRAINED_IN:
            raise UsageError(
                f"{folder}: its numbers are {trained_in}, and models are trained in {' or '.join(TRAINED_IN)}; "
                "choose one with --dtype"
            )
        packed = _Packed(shape, DTYPES[trained_in], max_file_bytes)
        made = not checkpoints.exists()
        folders.refuse_unwritable(checkpoints)
        refuse_too_full(checkpoints, shutil.disk_usage(checkpoints).free, packed.layout.tensor_bytes)
        partial = folders.partial(checkpoints, 0)
        shutil.rmtree(partial, ignore_errors=True)  # what an earlier try left
        try:
            partial.mkdir()
            tensors = packed.write(source, partial, progress)
            folders.commit(checkpoints, _manifest(folder, shape, trained_in, packed.files, tensors), keep=1)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if made and is_empty(checkpoints):
                checkpoints.rmdir()
            raise
    return Converted(len(tensors), packed.layout.tensor_bytes, len(packed.files))


class _Packed:
    """The files of a checkpoint of weights alone: every block of every tensor is a chunk of its own.

    Args:
        dtype: of all numbers, as safetensors spells it.
    """

    def __init__(self, shape: LlamaShape, dtype: str, max_file_bytes: int) -> None:
        self._dtype = dtype
        self._parts = {f"model.{name}": parts for name, parts in joined_tensors(shape).items()}
        self._blocks = {
            f"{name}[{part.first + block.start}]": (name, part, block)
            for name, parts in self._parts.items()
            for part in parts
            for block in blocks(part.shape, ITEM_BYTES[dtype])
        }
        sizes = {
            key: (dtype, (block.stop - block.start, *part.shape[1:])) for key, (_, part, block) in self._blocks.items()
        }
        self.layout: Layout = lay_out(sizes, max_file_bytes)
        self.files: dict[str, SavedFile] = {}
        for file, entries in self.layout.files.items():
            header = header_of(entries)
            sha256 = hashlib.sha256(header).hexdigest()
            self.files[file] = SavedFile(self.layout.file_bytes(file), len(header), sha256)

    def write(self, source: Source, folder: Path, progress: Progress) -> dict[str, SavedTensor]:
        """Copies block by block; returns what lies where."""
        chunks: dict[str, list[Chunk]] = {name: [] for name in self._parts}
        done = 0
        for file, entries in self.layout.files.items():
            create_file(folder / file, header_of(entries), self.layout.file_bytes(file))
            with closing(TensorWriter(folder / file, entries)) as writer:
                for key, entry in entries.items():
                    name, part, block = self._blocks[key]
                    content = read_as(source, part.name, part.shape, block, self._dtype)
                    writer.write(key, Block(0, entry.shape[0], 0, math.prod(entry.shape[1:])), content)
                    offsets = (part.first + block.start, *(0,) * (len(part.shape) - 1))
                    sha256 = hashlib.sha256(content).hexdigest()
                    chunks[name].append(Chunk(offsets, entry.shape, file, entry.offset, entry.nbytes, sha256))
                    done += len(content)
                    progress(done, self.layout.tensor_bytes)
        return {
            name: SavedTensor(dtype=self._dtype, shape=whole_shape(parts), chunks=tuple(chunks[name]))
            for name, parts in self._parts.items()
        }


def _manifest(
    folder: Path, shape: LlamaShape, dtype: str, files: Mapping[str, SavedFile], tensors: Mapping[str, SavedTensor]
) -> Manifest:
    where = str(folder.resolve())
    return Manifest(
        step=0,
        training={MODEL: words_of_shape(shape), DTYPE: dtype},
        deployment_fingerprint="",
        plan_fingerprint="",
        mesh=(0, 0, 0),
        versions=installed_versions(),
        written_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        origin={"model.hf_config": where, "model.weights": where},
        files=dict(files),
        tensors=dict(tensors),
    )
