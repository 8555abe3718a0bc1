"""Weights of built units from a Hugging Face folder and into one; each rank reads and writes only its own slices.

Llama, Mistral, Qwen2 and Qwen3; `weights/tensor_names.py` says which tensors a parameter joins. Pieces of a unit
(`3.mlp[0:96]`) have their slices of the unit's tensors. Drawn for a fused parameter on one of two ranks:

    qkv.weight, whole      q q q q | k k | v v        q_proj, k_proj and v_proj in the folder
    here                   q q     | k   | v          three blocks, each at its place in its tensor

What is held beside the parameters is one block of about 16 MiB (`BLOCK_BYTES`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import Tensor, nn

from hybrid_runtime.errors import UsageError
from hybrid_runtime.pieces import unit_of
from hybrid_runtime.tensor_parallel.shard import ShardSpec, iter_parameters
from hybrid_runtime.weights.source import Source
from hybrid_runtime.weights.target import Target
from hybrid_runtime.weights.tensor_file import Block, blocks
from hybrid_runtime.weights.tensor_names import layer_prefixes, names_of_unit

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Part = tuple[str, tuple[int, ...], Block, Tensor]  # name and shape of a tensor, a block of it, where that is held here


@torch.no_grad()
def load_hugging_face(folder: Path, units: Mapping[str, nn.Module]) -> None:
    """Fills the parameters of units built by `llama_units` from a folder of safetensors files.

    Raises:
        UsageError: a file or tensor is missing, damaged or of another shape, the folder has tensors that the units
            lack, or a unit is not of the Llama family.
    """
    with Source(folder) as source:
        for name, unit in units.items():
            known: set[str] = set()
            for parameter, spec, tensors in _parameters(name, unit, tied=getattr(unit, "tied", False)):
                known.update(tensor for tensor, _ in tensors)
                parameter.zero_()  # padding
                for tensor, shape, block, here in _parts(parameter, spec, tensors):
                    file = source.file_of(tensor, shape)
                    read = torch.empty(here.shape, dtype=_DTYPES[file.entries[tensor].dtype])
                    file.read(tensor, block, _bytes(read))
                    here.copy_(read)
            source.refuse_others(known, layer_prefixes(name))


@torch.no_grad()
def save_hugging_face(
    target: Target,
    units: Mapping[str, nn.Module],
    *,
    tp_rank: int,
    tied: bool,
    values_of: Callable[[nn.Parameter], Tensor] = lambda parameter: parameter,
) -> None:
    """Writes this rank's part of every tensor into the files that `target.begin` has made, and onto the disk.

    Call it on the ranks of one replica; together they write every byte once. A tied weight is the head's.

    Args:
        tp_rank: of the parts that several tensor-parallel ranks hold, the first one writes.
        tied: head and embedding have one weight.
        values_of: what is written of a parameter, of its shape: itself, or a wider copy.

    Raises:
        EnvironmentProblem: a file cannot be written.
        UsageError: a unit is not of the Llama family.
    """
    files = target.layout.file_of
    with ExitStack() as stack:
        writers = {file: stack.enter_context(closing(target.writer(file))) for file in target.layout.files}
        for name, unit in units.items():
            if tied and unit_of(name) == "embedding":
                continue
            for parameter, spec, tensors in _parameters(name, unit, tied=tied):
                if spec.dim is None and tp_rank != 0:
                    continue
                for tensor, _, block, here in _parts(values_of(parameter), spec, tensors, counted_only=True):
                    file = files[tensor]
                    dtype = _DTYPES[target.layout.files[file][tensor].dtype]
                    writers[file].write(tensor, block, _bytes(here.to("cpu", dtype).contiguous()))


def _parameters(
    name: str, unit: nn.Module, *, tied: bool
) -> Iterator[tuple[nn.Parameter, ShardSpec, list[tuple[str, int]]]]:
    """Every parameter, and the tensors that it joins with their sizes along dim 0."""
    names = names_of_unit(name, tied=tied)
    for parameter_name, parameter, spec in iter_parameters(unit):
        if parameter_name not in names:
            raise UsageError(
                f"unit {name!r} is a {type(unit).__name__}; Hugging Face folders can be read into and written from "
                "Llama-family units only"
            )
        layer = unit.get_submodule(parameter_name.rpartition(".")[0])
        sizes: Sequence[int] = getattr(layer, "sizes", spec.global_shape[:1])
        yield parameter, spec, list(zip(names[parameter_name], sizes, strict=True))


def _parts(
    parameter: Tensor, spec: ShardSpec, tensors: Sequence[tuple[str, int]], *, counted_only: bool = False
) -> Iterator[Part]:
    """What this rank holds of each tensor, in blocks; no padding."""
    dim = spec.dim or 0
    first = 0
    for name, size in tensors:
        shape = (size, *spec.global_shape[1:])
        for offset, start, stop in _held(spec, first, size, counted_only):
            part = (start - first, stop - first) if dim == 0 else (start, stop)
            local = parameter.narrow(dim, offset, stop - start)
            for block in blocks(shape, parameter.element_size(), dim=dim, part=part):
                at = block.start - part[0] if dim == 0 else block.start
                yield name, shape, block, local.narrow(0, at, block.stop - block.start)
        first += size


def _held(spec: ShardSpec, first: int, size: int, counted_only: bool) -> Iterator[tuple[int, int, int]]:
    """(local offset, global start, global stop) of what this rank holds of rows first..first+size (or of columns)."""
    if spec.dim is None:
        yield first, first, first + size
        return
    low, high = (first, first + size) if spec.dim == 0 else (0, spec.global_shape[spec.dim])
    offset = 0
    for segment in spec.segments:
        start, stop = max(segment.start, low), min(segment.start + segment.length, high)
        if start < stop and (segment.counted or not counted_only):
            yield offset + start - segment.start, start, stop
        offset += segment.length


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
