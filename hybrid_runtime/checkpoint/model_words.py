"""Which model a checkpoint is of, as text in its manifest: written by a training, read by `convert`. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from hybrid_runtime.shapes import LlamaShape, RopeScaling
from hybrid_runtime.weights.tensor_names import Part

MODEL, DTYPE, LENGTH = "model", "model.dtype", "batch.sequence_length"  # keys of `Manifest.training`

WEIGHTS, MASTERS = "model.", "optimizer.master."  # before the name of a parameter: itself, and its float32 copy


def words_of_shape(shape: LlamaShape) -> str:
    """A model of the Llama family, all its sizes."""
    return json.dumps(asdict(shape), sort_keys=True)


def shape_of_words(words: str) -> LlamaShape | None:
    """The opposite; None where the text describes something else: a model of one's own units."""
    try:
        values = json.loads(words)
        scaling = values.pop("rope_scaling")
        return LlamaShape(**values, rope_scaling=None if scaling is None else RopeScaling(*scaling))
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def unequal_words(one: str, other: str) -> tuple[str, str]:
    """Two models, without the sizes that they share; texts that describe no models as they are."""
    try:
        first, second = json.loads(one), json.loads(other)
        differing = [{key: value for key, value in a.items() if b.get(key) != value} for a, b in
                     ((first, second), (second, first))]  # fmt: skip
    except (ValueError, AttributeError):
        return one, other
    return json.dumps(differing[0]), json.dumps(differing[1])


def whole_shape(parts: Sequence[Part]) -> tuple[int, ...]:
    """Of the parameter that joins these tensors along dim 0."""
    return (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
