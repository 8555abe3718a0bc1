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
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

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
        step: how many steps the model has been trained: what the optimizer has counted, and the data's position, for
            the sampler has no state.
        training: what must be the same to continue (`job_checkpoints.training_facts`), as text.
        deployment_fingerprint, plan_fingerprint: of the run that wrote it.
        mesh: tp, pp and dp degree of that run; random states belong to it.
        tensors: by name: `model.<unit>.<parameter>`, `optimizer.exp_avg.<unit>.<parameter>`, `random....`.
    """

    schema_version: str = SCHEMA_VERSION
    step: int
    training: dict[str, str]
    deployment_fingerprint: str
    plan_fingerprint: str
    mesh: tuple[int, int, int]
    versions: dict[str, str]
    written_utc: str
    tensors: dict[str, SavedTensor]

    def to_json(self) -> str:
        """The file's text, which carries its own checksum."""
        content = _compact(self.model_dump(mode="json"))
        return f'{{"sha256": "{hashlib.sha256(content.encode()).hexdigest()}", "manifest": {content}}}\n'


_INDEX = TypeAdapter(dict[str, SavedTensor])


def index_to_json(tensors: dict[str, SavedTensor]) -> str:
    """What one rank wrote, until rank 0 puts it into the manifest."""
    return _INDEX.dump_json(tensors).decode()


def index_from_json(text: str) -> dict[str, SavedTensor]:
    """The opposite."""
    return _INDEX.validate_json(text)


def merged(indexes: list[dict[str, SavedTensor]]) -> dict[str, SavedTensor]:
    """All ranks' chunks by tensor, in an order that does not depend on who wrote what."""
    whole: dict[str, SavedTensor] = {}
    for index in indexes:
        for name, tensor in index.items():
            known = whole.get(name)
            chunks = (*(known.chunks if known else ()), *tensor.chunks)
            whole[name] = tensor.model_copy(update={"chunks": tuple(sorted(chunks))})
    return dict(sorted(whole.items()))


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
    return manifest


_OTHER = "resume from another checkpoint"


def _check_files(folder: Path, manifest: Manifest) -> None:
    needed: dict[str, int] = {}
    for tensor in manifest.tensors.values():
        for chunk in tensor.chunks:
            needed[chunk.file] = max(needed.get(chunk.file, 0), chunk.start + chunk.length)
    for name, size in needed.items():
        path = folder / name
        try:
            found = path.stat().st_size
        except OSError as problem:
            raise CheckpointError(f"{path}: cannot be read ({problem.strerror}); {_OTHER}") from None
        if found != size:
            raise CheckpointError(f"{path}: is damaged: it has {found} bytes, and {size} were written; {_OTHER}")


def _compact(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
