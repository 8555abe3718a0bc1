"""`manifest.json` of a checkpoint: which tensors, cut into which chunks, in which files, with which checksums.

    checkpoints/step-00000040/
      rank0.safetensors  rank1.safetensors ...    what each rank wrote
      manifest.json                               written last, by rank 0, when every rank's file was whole

Everything here is JSON and plain bytes. Nothing is ever unpickled from a checkpoint, unlike the `.metadata` of torch's
own file system reader. The manifest holds the SHA-256 of every chunk and of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from hybrid_runtime.errors import CheckpointError

MANIFEST = "manifest.json"
SCHEMA_VERSION = "1.0"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Chunk(NamedTuple):
    """A box of a tensor as it lies in a file, row by row.

    Attributes:
        file: name of the file in the checkpoint's folder.
        start, length: in bytes, from the beginning of the file.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int
    sha256: str


class SavedFile(NamedTuple):
    """A file of a checkpoint: a header of so many bytes, then chunks to its end."""

    num_bytes: int
    header_bytes: int
    header_sha256: str


class SavedTensor(_Frozen):
    """A whole tensor.

    Attributes:
        dtype: as safetensors spells it: F32, BF16, ...
        shape: of the whole tensor, without padding.
        chunks: disjoint, and together the whole tensor.
    """

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class Manifest(_Frozen):
    """A whole checkpoint.

    Attributes:
        step: how many steps the model has been trained: the data's position, for the sampler has no state.
        skipped: of them, steps whose update was skipped; the optimizer has counted the others.
        training: what must be the same to continue (`same_training.training_facts`), as text.
        deployment_fingerprint, plan_fingerprint: of the run that wrote it.
        mesh: tp, pp and dp degree of that run; random states belong to it. 0, 0, 0 where no run wrote it.
        origin: paths of that run's model.hf_config, model.weights and data.tokenizer, for whoever converts it.
        files: by name.
        tensors: by name: `model.<unit>.<parameter>`, `optimizer.exp_avg.<unit>.<parameter>`, `random....`.
    """

    schema_version: str = SCHEMA_VERSION
    step: int
    skipped: int = 0
    training: dict[str, str]
    deployment_fingerprint: str
    plan_fingerprint: str
    mesh: tuple[int, int, int]
    versions: dict[str, str]
    written_utc: str
    origin: dict[str, str] = {}
    files: dict[str, SavedFile] = {}
    tensors: dict[str, SavedTensor] = {}

    def to_json(self) -> str:
        """The file's text, which carries its own checksum."""
        content = _compact(self.model_dump(mode="json"))
        return f'{{"sha256": "{hashlib.sha256(content.encode()).hexdigest()}", "manifest": {content}}}\n'


class Index(_Frozen):
    """What one rank has written; it lies beside its file until rank 0 puts all of them into the manifest."""

    name: str
    file: SavedFile
    tensors: dict[str, SavedTensor]


def with_indexes(manifest: Manifest, indexes: Sequence[Index]) -> Manifest:
    """The manifest with everything that the ranks have written."""
    chunks: dict[str, list[Chunk]] = {}
    known: dict[str, SavedTensor] = {}
    for index in indexes:
        for name, tensor in index.tensors.items():
            known[name] = tensor
            chunks.setdefault(name, []).extend(tensor.chunks)
    tensors = {name: known[name].model_copy(update={"chunks": tuple(sorted(chunks[name]))}) for name in sorted(known)}
    files = {index.name: index.file for index in indexes}
    return manifest.model_copy(update={"files": files, "tensors": tensors})


def read_manifest(folder: Path) -> Manifest:
    """Reads a checkpoint's manifest and compares the sizes of its files; contents are compared when they are read.

    Raises:
        CheckpointError: it is missing, damaged or of another version, or a file is missing or cut off.
    """
    path = folder / MANIFEST
    try:
        values: Any = json.loads(path.read_bytes())
        content, said = values["manifest"], values["sha256"]
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read ({problem.strerror}); {_OTHER}") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: is damaged: it is not a manifest; {_OTHER}") from None
    if not isinstance(content, dict) or hashlib.sha256(_compact(content).encode()).hexdigest() != said:
        raise CheckpointError(f"{path}: is damaged: its SHA-256 is not the one it was written with; {_OTHER}")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema_version {content.get('schema_version')} is not {SCHEMA_VERSION}; "
            "resume it with the version that wrote it"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as problem:
        raise CheckpointError(f"{path}: is not a manifest: {problem.errors()[0]['msg']}; {_OTHER}") from None
    _check_files(folder, manifest)
    _check_chunks(path, manifest)
    return manifest


_OTHER = "resume from another checkpoint"


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, file in manifest.files.items():
        path = folder / name
        try:
            found = path.stat().st_size
        except OSError as problem:
            raise CheckpointError(f"{path}: cannot be read ({problem.strerror}); {_OTHER}") from None
        if found != file.num_bytes:
            raise CheckpointError(
                f"{path}: is damaged: it has {found} bytes, and {file.num_bytes} were written; {_OTHER}"
            )


def _check_chunks(path: Path, manifest: Manifest) -> None:
    """Whoever makes up a manifest, with a checksum that fits, gets no further than these files."""
    for name, tensor in manifest.tensors.items():
        for chunk in tensor.chunks:
            file = manifest.files.get(chunk.file)
            inside = file is not None and 0 <= chunk.start <= chunk.start + chunk.length <= file.num_bytes
            if not inside or Path(chunk.file).name != chunk.file:
                raise CheckpointError(f"{path}: a chunk of {name} lies in no file of the checkpoint; {_OTHER}")


def _compact(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
