"""Reads a checkpoint into tensors of any layout, and compares every checksum on the way.

    whole tensor, saved as two chunks     |  rank 0 of 2  |  rank 1 of 2  |
    now wanted by three ranks             |  box 0   |  box 1   |  box 2  |     box 1 reads both chunks, a part of each

Which parts of which chunks a box needs is torch.distributed.checkpoint's own arithmetic, and `CheckpointReader` is one
of its storage readers: `torch.distributed.checkpoint.load(state, storage_reader=CheckpointReader(folder))` fills any
state dict that it supports, without this runtime. Nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from hybrid_runtime.checkpoint.chunks import checked_chunks
from hybrid_runtime.checkpoint.manifest import Chunk, Manifest, SavedFile, SavedTensor, read_manifest
from hybrid_runtime.checkpoint.rank_file import TORCH_DTYPES, Item
from hybrid_runtime.errors import CheckpointError, UsageError


class _Read(NamedTuple):
    """A part of a chunk, and the tensor (or view) of the same sizes that it fills."""

    chunk: Chunk
    name: str
    dtype: torch.dtype
    offsets: Sequence[int]
    target: Tensor


def restore(folder: Path, manifest: Manifest, wanted: Iterable[Item]) -> None:
    """Fills each item's values, which may be views, with its box of a saved tensor.

    Besides the tensors it needs the memory of one chunk (`rank_file.CHUNK_BYTES`, or a row that is longer).

    Raises:
        CheckpointError: a chunk is damaged; names the file and the tensor.
        UsageError: the checkpoint holds no such tensor, or one of another shape or type.
    """
    reads: list[_Read] = []
    for item in wanted:
        saved = _saved(folder, manifest, item)
        metadata = _metadata_of(saved)
        box = ChunkStorageMetadata(torch.Size(item.box.offsets), torch.Size(item.box.sizes))
        chunks = {chunk.offsets: chunk for chunk in saved.chunks}
        found = 0
        for part in create_read_items_for_chunk_list(item.box.name, metadata, [box]):
            assert part.storage_index.offset is not None
            chunk = chunks[tuple(part.storage_index.offset)]
            target = _narrowed(item.values, part.dest_offsets, part.lengths)
            reads.append(_Read(chunk, item.box.name, item.values.dtype, part.storage_offsets, target))
            found += target.numel()
        if found != item.box.numel:
            raise CheckpointError(
                f"{folder}: is incomplete: it holds {found} of {item.box.numel} elements wanted of {item.box.name}; "
                "resume from another checkpoint"
            )
    _read(folder, manifest.files, reads)


def check_whole(folder: Path) -> Manifest:
    """Reads everything and compares every checksum.

    Raises:
        CheckpointError: something is missing or damaged; names the file and the tensor.
    """
    manifest = read_manifest(folder)
    reads = [
        _Read(chunk, name, TORCH_DTYPES[tensor.dtype], (0,) * len(chunk.sizes), torch.empty(0))
        for name, tensor in manifest.tensors.items()
        for chunk in tensor.chunks
    ]
    _read(folder, manifest.files, reads)
    return manifest


def _saved(folder: Path, manifest: Manifest, item: Item) -> SavedTensor:
    saved = manifest.tensors.get(item.box.name)
    if saved is None:
        raise UsageError(f"{folder}: holds no tensor {item.box.name}; it is of another model")
    if saved.shape != item.box.shape or TORCH_DTYPES.get(saved.dtype) != item.values.dtype:
        raise UsageError(
            f"{folder}: {item.box.name} is {saved.dtype} of shape {list(saved.shape)}, and this model has "
            f"{item.values.dtype} of shape {list(item.box.shape)}; it is of another model"
        )
    return saved


def _read(folder: Path, files: Mapping[str, SavedFile], reads: Iterable[_Read]) -> None:
    of_chunk: dict[Chunk, list[_Read]] = {}
    for read in reads:
        of_chunk.setdefault(read.chunk, []).append(read)
    wanted = {chunk: reads[0].name for chunk, reads in of_chunk.items()}
    for chunk, content in checked_chunks(folder, files, wanted):
        for read in of_chunk[chunk]:
            if read.target.numel():
                values = torch.frombuffer(content, dtype=read.dtype).view(chunk.sizes)
                read.target.copy_(_narrowed(values, read.offsets, read.target.shape))


def _narrowed(tensor: Tensor, offsets: Iterable[int], lengths: Iterable[int]) -> Tensor:
    for dim, (start, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, start, length)
    return tensor


def _metadata_of(tensor: SavedTensor) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)) for chunk in tensor.chunks]
    return TensorStorageMetadata(TensorProperties(TORCH_DTYPES[tensor.dtype]), torch.Size(tensor.shape), chunks)


class CheckpointReader(StorageReader):
    """A checkpoint for `torch.distributed.checkpoint.load`; every chunk that is read is compared with its checksum.

    Args:
        folder: one checkpoint, `.../step-00000040`.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._chunks: dict[MetadataIndex, Chunk] = {}
        self._files: dict[str, SavedFile] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Another folder, if one is given."""
        if checkpoint_id is not None:
            self._folder = Path(checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The manifest in torch's words.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        manifest = read_manifest(self._folder)
        self._files, tensors = manifest.files, manifest.tensors
        chunks: dict[MetadataIndex, Chunk] = {
            MetadataIndex(name, chunk.offsets): chunk for name, tensor in tensors.items() for chunk in tensor.chunks
        }
        return Metadata({name: _metadata_of(tensor) for name, tensor in tensors.items()}, storage_data=chunks)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Remembers where the chunks are."""
        self._chunks = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to change."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to change."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads what the plan asks for.

        Raises:
            CheckpointError: a chunk is damaged.
        """
        targets = [(item, planner.resolve_tensor(item).detach()) for item in plan.items]
        _read(
            self._folder,
            self._files or read_manifest(self._folder).files,
            [self._read_of(item, target) for item, target in targets],
        )
        for item, target in targets:
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_of(self, item: ReadItem, target: Tensor) -> _Read:
        chunk = self._chunks[item.storage_index]
        return _Read(chunk, item.storage_index.fqn, target.dtype, item.storage_offsets, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a checkpoint of ours."""
        return (Path(checkpoint_id) / "manifest.json").is_file()
