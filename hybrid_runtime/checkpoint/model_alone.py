"""The model of a checkpoint without its training: weights for whoever only asks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from hybrid_runtime.checkpoint.boxes import held_boxes, tied_names
from hybrid_runtime.checkpoint.manifest import read_manifest
from hybrid_runtime.checkpoint.model_words import MODEL, words_of_shape
from hybrid_runtime.checkpoint.rank_file import Item
from hybrid_runtime.errors import UsageError
from hybrid_runtime.models.unit import UnitSpec
from hybrid_runtime.shapes import LlamaShape


def load_model(checkpoint: Path, shape: LlamaShape, units: Mapping[str, nn.Module], specs: Sequence[UnitSpec]) -> None:
    """Fills this rank's units from a checkpoint that any mesh wrote.

    Args:
        checkpoint: one of them, `.../step-00000040`.
        shape: of the model.
        specs: of all its units.

    Raises:
        CheckpointError: it is damaged.
        UsageError: it is of another model, or its weights are of another type.
    """
    from hybrid_runtime.checkpoint.reader import restore  # loads torch.distributed.checkpoint, which takes a second

    manifest = read_manifest(checkpoint)
    if manifest.training.get(MODEL) != words_of_shape(shape):
        raise UsageError(
            f"{checkpoint}: is of a model with other sizes than the deployment's [model]; name the deployment that it "
            "was trained with"
        )
    held = held_boxes(units, tied_names(specs))
    items = [Item(box.box._replace(name=f"model.{box.box.name}"), box.view_of(box.tensor)) for box in held]
    restore(checkpoint, manifest, items)
