"""Which boxes of the whole tensors a rank holds, and which of them it writes.

    whole tensor, 8 rows      0 1 2 3 4 5 6 7
    rank 0 (dp 0, tp 0)       [0:4]                written by rank 0
    rank 1 (dp 0, tp 1)               [4:8]        written by rank 1
    rank 2 (dp 1, tp 0)       [0:4]                the same: written once, by whoever has written less so far
    rank 3 (dp 1, tp 1)               [4:8]

A box is named by the whole tensor that it is cut from, so its name says nothing of meshes, cuts or schedules: pieces of
a unit (`3.mlp[0:96]`) are boxes of the unit's tensors, and both ends of a tied weight are one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from hybrid_runtime.errors import UsageError
from hybrid_runtime.models.unit import UnitSpec
from hybrid_runtime.pieces import unit_of
from hybrid_runtime.tensor_parallel.shard import ShardSpec, iter_parameters


class Box(NamedTuple):
    """A rectangular part of a whole tensor.

    Attributes:
        name: of the whole tensor, `<unit>.<parameter>`.
        shape: of the whole tensor, without padding.
        offsets, sizes: where the box begins and how long it is, per dim.
    """

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)

    def holds(self, other: Box) -> bool:
        """Whether the other box of the same tensor lies inside this one."""
        ends = zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True)
        return all(start <= its and its + length <= start + size for start, size, its, length in ends)


class HeldBox(NamedTuple):
    """A box, and where it lies in a rank's own tensor.

    Attributes:
        tensor: the rank's parameter or buffer.
        dim, start: the box is `tensor.narrow(dim, start, box.sizes[dim])`; dim None: all of it.
    """

    box: Box
    tensor: Tensor
    dim: int | None = None
    start: int = 0

    def view_of(self, tensor: Tensor) -> Tensor:
        """The box in a tensor of the same layout: the parameter itself, or one of its optimizer states."""
        return tensor if self.dim is None else tensor.narrow(self.dim, self.start, self.box.sizes[self.dim])


def flat_boxes(held: HeldBox, flat: Tensor, start: int) -> Iterator[tuple[Box, Tensor]]:
    """The boxes, and views, of a run of a flattened tensor that is laid out as the holder's is.

        elements 3 to 10 of (4, 3)      . . .
                                        3 4 5      one box of the whole rows,
                                        6 7 8
                                        9 . .      one of what is left

    Args:
        flat: the run's values.
        start: its first element.
    """
    shape = held.tensor.shape
    for offsets, sizes in rectangles(tuple(shape), start, start + flat.numel()):
        first = sum(offset * math.prod(shape[dim + 1 :]) for dim, offset in enumerate(offsets)) - start
        values = flat[first : first + math.prod(sizes)].view(sizes)
        where = [base + offset for base, offset in zip(held.box.offsets, offsets, strict=True)]
        if (dim := held.dim) is not None:  # the box is only a part of the tensor
            low = max(offsets[dim], held.start)
            high = min(offsets[dim] + sizes[dim], held.start + held.box.sizes[dim])
            if low >= high:
                continue
            where[dim] = held.box.offsets[dim] + low - held.start
            values = values.narrow(dim, low - offsets[dim], high - low)
        yield held.box._replace(offsets=tuple(where), sizes=tuple(values.shape)), values


def rectangles(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offsets and sizes of the few contiguous rectangles that elements start to stop of a flattened tensor are."""
    if start >= stop:
        return
    if not shape:
        yield (), ()
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows
    if first > last:
        yield from _in_row(shape, first - 1, start, stop)
        return
    yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        rest = len(shape) - 1
        yield (first, *(0,) * rest), (last - first, *shape[1:])
    yield from _in_row(shape, last, last * row, stop)


def _in_row(
    shape: tuple[int, ...], number: int, start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    row = math.prod(shape[1:])
    for offsets, sizes in rectangles(shape[1:], start - number * row, stop - number * row):
        yield (number, *offsets), (1, *sizes)


def tied_names(specs: Sequence[UnitSpec]) -> dict[str, str]:
    """Name of a tied parameter -> name of the parameter whose weight it shares."""
    return {f"{spec.name}.{own}": ".".join(target) for spec in specs for own, target in spec.tied.items()}


def held_boxes(units: Mapping[str, nn.Module], tied: Mapping[str, str]) -> list[HeldBox]:
    """Every parameter and persistent buffer of a rank's units (or pieces of units), each once, padding left out.

    Replicas hold equal parameters; of buffers that differ between them (running means) one replica's are kept.
    """
    found: dict[tuple[Box, int], HeldBox] = {}
    for key, unit in units.items():
        root = unit_of(key)
        named = [(name, parameter.data, spec) for name, parameter, spec in iter_parameters({root: unit})]
        named += [(f"{root}.{name}", buffer, ShardSpec(global_shape=tuple(buffer.shape)))
                  for name, buffer in _kept_buffers(unit)]  # fmt: skip
        for name, tensor, spec in named:
            for held in _boxes(tied.get(name, name), tensor, spec):
                found.setdefault((held.box, tensor.data_ptr()), held)
    return list(found.values())


def _kept_buffers(unit: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in unit.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _boxes(name: str, tensor: Tensor, spec: ShardSpec) -> Iterator[HeldBox]:
    shape = spec.global_shape
    if spec.dim is None:
        if tensor.numel():
            yield HeldBox(Box(name, shape, (0,) * len(shape), shape), tensor)
        return
    start = 0
    for segment in spec.segments:
        length = min(segment.length, shape[spec.dim] - segment.start)
        if length > 0:
            offsets = tuple(segment.start if dim == spec.dim else 0 for dim in range(len(shape)))
            sizes = tuple(length if dim == spec.dim else size for dim, size in enumerate(shape))
            yield HeldBox(Box(name, shape, offsets, sizes), tensor, spec.dim, start)
        start += segment.length


def shared_out(everyone: Sequence[Sequence[Box]]) -> list[set[Box]]:
    """Who writes which box: every element of every tensor once, and each rank about as much where there is a choice.

    Args:
        everyone: the boxes that each rank holds. All ranks must see the same, and then decide the same.

    Raises:
        UsageError: the ranks together do not hold a tensor whole, or disagree on its shape.
    """
    holders: dict[str, dict[Box, list[int]]] = {}
    for rank, boxes in enumerate(everyone):
        for box in boxes:
            holders.setdefault(box.name, {}).setdefault(box, []).append(rank)
    written: list[set[Box]] = [set() for _ in everyone]
    load = [0] * len(everyone)
    for name, of_tensor in holders.items():
        for box in _needed(name, list(of_tensor)):
            rank = min(of_tensor[box], key=lambda rank: (load[rank], rank))
            written[rank].add(box)
            load[rank] += box.numel
    return written


def _needed(name: str, boxes: list[Box]) -> list[Box]:
    """Without those that lie inside others."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.numel):
        if not any(other.holds(box) for other in kept if len(other.shape) == len(box.shape)):
            kept.append(box)
    shapes = {box.shape for box in boxes}
    held, whole = sum(box.numel for box in kept), math.prod(boxes[0].shape)
    if len(shapes) > 1 or held != whole:
        shown = " and ".join(str(list(shape)) for shape in sorted(shapes))
        raise UsageError(
            f"{name} of shape {shown}: the ranks hold {held} of its {whole} elements, so no checkpoint of it can be "
            "whole; mend the ShardSpec of its module"
        )
    return kept
