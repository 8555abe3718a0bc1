"""The bytes of a checkpoint's files, chunk by chunk, given out only if they are those that were written. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from hybrid_runtime.checkpoint.manifest import Chunk, SavedFile
from hybrid_runtime.errors import CheckpointError


def checked_chunks(
    folder: Path, files: Mapping[str, SavedFile], wanted: Mapping[Chunk, str]
) -> Iterator[tuple[Chunk, memoryview]]:
    """Every wanted chunk with its bytes, in the order in which they lie on the disk.

    The bytes are of one buffer as long as the longest chunk: they hold until the next chunk is asked for.

    Args:
        files: of the manifest.
        wanted: by chunk, what it is of, for whoever reads that it is damaged.

    Raises:
        CheckpointError: a chunk or a file's header is damaged, or a file cannot be read; names the file and the tensor.
    """
    lengths = [chunk.length for chunk in wanted] + [files[chunk.file].header_bytes for chunk in wanted]
    buffer = memoryview(bytearray(max(lengths, default=0)))
    order = sorted(wanted, key=lambda chunk: (chunk.file, chunk.start))
    for name, of_file in groupby(order, key=lambda chunk: chunk.file):
        path, header = folder / name, files[name]
        try:
            with path.open("rb", buffering=0) as file:
                _fetch(path, file.fileno(), 0, buffer[: header.header_bytes], header.header_sha256, "its header")
                for chunk in of_file:
                    content = buffer[: chunk.length]
                    _fetch(path, file.fileno(), chunk.start, content, chunk.sha256, wanted[chunk])
                    yield chunk, content
        except OSError as problem:
            raise CheckpointError(
                f"{path}: cannot be read ({problem.strerror}); resume from another checkpoint"
            ) from None


def _fetch(path: Path, number: int, start: int, content: memoryview, sha256: str, what: str) -> None:
    """Fills the buffer with the file's bytes from `start` on, if they are the right ones."""
    length, got = len(content), 0
    while got < length and (more := os.preadv(number, [content[got:]], start + got)):
        got += more
    if got < length or hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(
            f"{path}: is damaged: bytes {start} to {start + length}, of {what}, are not those that were written "
            "(SHA-256); resume from another checkpoint"
        )
