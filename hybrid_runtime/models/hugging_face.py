"""Weights of a Hugging Face Llama, Mistral or Qwen2 folder into built units; each rank reads only its own slices.

Pieces of a unit (`3.mlp[0:96]`) read their slices of the unit's tensors.

unit        parameter           tensors in the folder (joined along dim 0)
embedding   tokens.weight       model.embed_tokens.weight; its rows alike, on whatever rank
k.attn      norm.weight         model.layers.k.input_layernorm.weight
            qkv.weight, .bias   model.layers.k.self_attn.{q,k,v}_proj.*
            output.weight       model.layers.k.self_attn.o_proj.weight
k.mlp       norm.weight         model.layers.k.post_attention_layernorm.weight
            gate_up.weight      model.layers.k.mlp.{gate,up}_proj.weight
            down.weight         model.layers.k.mlp.down_proj.weight
head        norm.weight         model.norm.weight
            output.weight       lm_head.weight, or the embedding's when tied
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hybrid_runtime.errors import UsageError
from hybrid_runtime.models.llama import (
    AttentionUnit,
    EmbeddingRowsUnit,
    EmbeddingUnit,
    HeadUnit,
    MlpUnit,
    SummedRowsUnit,
)
from hybrid_runtime.tensor_parallel.shard import ShardSpec, iter_parameters

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@torch.no_grad()
def load_hugging_face(folder: Path, units: Mapping[str, nn.Module]) -> None:
    """Fills the parameters of units built by `llama_units` from a folder of safetensors files.

    Raises:
        UsageError: a file or tensor is missing, damaged or of another shape, or a unit is not of the Llama family.
    """
    with ExitStack() as stack:
        tensors = _Tensors(folder, stack)
        for name, unit in units.items():
            sources = _sources(name, unit)
            for parameter_name, parameter, spec in iter_parameters(unit):
                parameter.copy_(_read(tensors, sources[parameter_name], spec, parameter))


class _Tensors:
    """The tensors of a folder by name; files are opened when first needed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._open: dict[Path, Any] = {}
        self._file_of = _index(folder)

    def slice_of(self, name: str, shape: tuple[int, ...]) -> Any:
        """A lazy view of one tensor, which must have this shape."""
        path = self._folder / (SINGLE if self._file_of is None else self._file_of.get(name, ""))
        if self._file_of is not None and name not in self._file_of:
            raise UsageError(f"{self._folder / INDEX}: names no tensor {name}; the weights are of another model")
        file = self._file(path)
        if name not in file.keys():  # noqa: SIM118 - not a dict
            raise UsageError(f"{path}: holds no tensor {name}; the weights are of another model, or incomplete")
        lazy = file.get_slice(name)
        found = tuple(lazy.get_shape())
        if found != shape:
            raise UsageError(f"{path}: {name} has shape {found}, the model needs {shape}; correct the model's sizes")
        return lazy

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
            except FileNotFoundError:
                raise UsageError(f"{path}: does not exist; download all files of the model") from None
            except (OSError, SafetensorError) as problem:
                raise UsageError(f"{path}: is not a readable safetensors file ({problem}); download it again") from None
        return self._open[path]


def _index(folder: Path) -> dict[str, str] | None:
    """Tensor name -> file name; None for a folder with one file."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: is not a folder; model.weights names a folder of safetensors files")
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise UsageError(f"{folder}: holds neither {SINGLE} nor {INDEX}; only safetensors weights can be read")
        return None
    try:
        files: dict[str, str] = dict(json.loads((folder / INDEX).read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UsageError(f"{folder / INDEX}: is not a usable index ({problem!r}); download it again") from None
    return files


def _sources(name: str, unit: nn.Module) -> dict[str, list[tuple[str, int]]]:
    """Own parameter name -> (tensor name, its size along dim 0), in the order they are joined."""
    layer = f"model.layers.{name.partition('.')[0]}"
    if isinstance(unit, EmbeddingUnit | EmbeddingRowsUnit):
        return {"tokens.weight": [("model.embed_tokens.weight", unit.tokens.vocab_size)]}
    if isinstance(unit, AttentionUnit):
        hidden = unit.output.shards["weight"].global_shape[0]
        projections = [f"{layer}.self_attn.{letter}_proj" for letter in "qkv"]
        return {
            "norm.weight": [(f"{layer}.input_layernorm.weight", hidden)],
            "qkv.weight": [(f"{p}.weight", size) for p, size in zip(projections, unit.qkv.sizes)],
            "qkv.bias": [(f"{p}.bias", size) for p, size in zip(projections, unit.qkv.sizes)],
            "output.weight": [(f"{layer}.self_attn.o_proj.weight", hidden)],
        }
    if isinstance(unit, MlpUnit):
        hidden = unit.down.shards["weight"].global_shape[0]
        projections = [f"{layer}.mlp.{side}_proj" for side in ("gate", "up")]
        return {
            "norm.weight": [(f"{layer}.post_attention_layernorm.weight", hidden)],
            "gate_up.weight": [(f"{p}.weight", size) for p, size in zip(projections, unit.gate_up.sizes)],
            "down.weight": [(f"{layer}.mlp.down_proj.weight", hidden)],
        }
    if isinstance(unit, HeadUnit):
        output = "model.embed_tokens.weight" if unit.tied else "lm_head.weight"
        return {
            "norm.weight": [("model.norm.weight", unit.norm.weight.numel())],
            "output.weight": [(output, unit.vocab_size)],
        }
    if isinstance(unit, SummedRowsUnit):
        return {}
    raise UsageError(
        f"unit {name!r} is a {type(unit).__name__}; model.weights can be loaded into Llama-family units only"
    )


def _read(tensors: _Tensors, pieces: list[tuple[str, int]], spec: ShardSpec, like: Tensor) -> Tensor:
    """The rank's part of the joined pieces; padding is zero."""
    local = torch.zeros_like(like)
    first = 0
    for name, size in pieces:
        lazy = tensors.slice_of(name, (size, *spec.global_shape[1:]))
        for offset, start, stop in _wanted(spec, first, size):
            if spec.dim == 1:
                local.narrow(1, offset, stop - start).copy_(lazy[:, start:stop])
            else:
                local.narrow(0, offset, stop - start).copy_(lazy[start - first : stop - first])
        first += size
    return local


def _wanted(spec: ShardSpec, first: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(local offset, global start, global stop) of what this rank holds of rows first..first+size (or of columns)."""
    if spec.dim is None:
        yield first, first, first + size
        return
    low, high = (first, first + size) if spec.dim == 0 else (0, spec.global_shape[spec.dim])
    offset = 0
    for segment in spec.segments:
        start, stop = max(segment.start, low), min(segment.start + segment.length, high)
        if start < stop:
            yield offset + start - segment.start, start, stop
        offset += segment.length
