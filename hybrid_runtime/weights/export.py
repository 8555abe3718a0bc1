"""What a deployment exports: the layout of the folder before the run, and what goes with the tensors after it.

models/mine/hybrid_runtime.json    which training it is of, and after which step: a training that goes on replaces it
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_runtime import exact
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import UsageError
from hybrid_runtime.hugging_face_config import CONFIG, config_of, dtype_of_config, read_config
from hybrid_runtime.weights.layout import lay_out
from hybrid_runtime.weights.number_types import DTYPES
from hybrid_runtime.weights.target import Target, files_to_copy, is_empty
from hybrid_runtime.weights.tensor_names import tensor_shapes

MARK = "hybrid_runtime.json"


class Exported(NamedTuple):
    """What a folder is of.

    Attributes:
        training: the facts that make two runs parts of one training (`checkpoint/same_training.py`).
        step: how many steps the model has been trained.
    """

    training: Mapping[str, str]
    step: int


def export_target(deployment: Deployment, *, replaces: bool = False) -> Target | None:
    """The folder that the deployment's [export] asks for, the same on every rank; None where it asks for nothing.

    Args:
        replaces: a folder that is there goes when the new one is whole.

    Raises:
        UsageError: transformers has no such model.
    """
    if deployment.export is None:
        return None
    assert deployment.shape is not None, "[export] is refused beside a model of one's own units"
    export_config(deployment)
    dtype = DTYPES[export_dtype(deployment)]
    tensors = {name: (dtype, size) for name, size in tensor_shapes(deployment.shape).items()}
    limit = exact.parse_bytes(deployment.export.max_file_size)
    return Target(Path(deployment.export.folder), lay_out(tensors, int(limit)), replaces=replaces)


def refuse_other_export(folder: Path, now: Exported) -> None:
    """Whether a training that goes on may replace the folder that is there, if any: an earlier export of its own.

    Args:
        now: the training, and the step that it goes on from.

    Raises:
        UsageError: it is something else, or of a later step.
    """
    if not os.path.lexists(folder) or is_empty(folder):
        return
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
        training, step = dict(found["training"]), int(found["step"])
    except (OSError, ValueError, LookupError, TypeError):
        training, step = None, 0
    if not training or {**now.training, **training} != dict(now.training):  # what an older one does not say may be
        raise UsageError(
            f"{folder}: already exists and is no earlier export of this training; name another export.folder, or "
            "remove it"
        )
    if step > now.step:
        raise UsageError(
            f"{folder}: is of step {step}, later than step {now.step}, from where the training goes on; name another "
            "export.folder, or remove it"
        )


def export_config(deployment: Deployment) -> dict[str, Any]:
    """Content of config.json: that of the folder which the model came from, as far as it still holds.

    Raises:
        UsageError: that file has become unreadable, or transformers has no such model.
    """
    assert deployment.shape is not None
    return config_of(
        deployment.shape,
        dtype=export_dtype(deployment),
        max_position_embeddings=deployment.batch.sequence_length if deployment.batch else 0,
        source=_source_config(deployment),
    )


def finish_export(deployment: Deployment, target: Target, what: Exported) -> None:
    """Writes config.json and copies the tokenizer, when all tensors are written, and gives the folder its name.

    Args:
        what: written down in the folder.

    Raises:
        EnvironmentProblem: something cannot be written.
    """
    tokenizer = Path(deployment.data.tokenizer)
    copied = files_to_copy(_folders(deployment), tokenizer if tokenizer.is_file() else None)
    text = json.dumps({"step": what.step, "training": dict(what.training)}, indent=2) + "\n"
    target.finish(export_config(deployment), copied, {MARK: text})


def export_dtype(deployment: Deployment) -> str:
    """Of the weights in the folder, in torch's spelling: what [export] says, else the model's.

    A model that came as float32 and is trained in bfloat16 beside float32 copies leaves as it came.
    """
    assert deployment.export is not None
    assert deployment.model is not None
    if deployment.export.dtype is not None:
        return deployment.export.dtype
    has_masters = deployment.workload.kind == "train" and deployment.optimizer.master_weights
    source = _source_config(deployment) if has_masters else None
    return "float32" if source is not None and dtype_of_config(source) == "float32" else deployment.model.dtype


def _source_config(deployment: Deployment) -> dict[str, Any] | None:
    """Of the folder that the model came from, if it is still there."""
    return next((read_config(folder) for folder in _folders(deployment) if (folder / CONFIG).is_file()), None)


def _folders(deployment: Deployment) -> list[Path]:
    """Where the model came from: the config's folder, then the weights'."""
    assert deployment.model is not None
    config, weights = deployment.model.hf_config, deployment.model.weights
    named = [Path(path) for path in (config, weights) if path is not None]
    return [path.parent if path.name == CONFIG else path for path in named]
