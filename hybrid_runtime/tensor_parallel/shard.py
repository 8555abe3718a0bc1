"""How a rank's parameter lies in the whole model's: one description for every layout, and what is computed from it.

    local = cat([full.narrow(dim, s.start, s.length) for s in segments], dim)

Drawn for fused query, key and value with 8 query heads and 2 key/value heads over 4 ranks (one letter a head):

    full      q q q q q q q q | k K | v V
    rank 0    q q             | k   | v           counted
    rank 1        q q         | k   | v           k and v: same segment as rank 0 (replicas = 2), not counted
    rank 2            q q     |   K |   V         counted
    rank 3                q q |   K |   V

Rows past the end of the whole parameter are padding (vocabularies that the ranks do not divide): zero in the local
parameter, and without a gradient.

A piece of a unit (pieces.py) holds the same slice of every segment, with the coordinates of the whole parameter; drawn
for an MLP of 8 neurons over 2 ranks, cut after 4 of them:

    full             g g g g g g g g | u u u u u u u u
    rank 0, [0:4]    g g             | u u
    rank 0, [4:8]        g g         |     u u
    rank 1, [0:4]            g g     |         u u
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import all_reduce
from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import Slice


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of rows (or columns) of the whole parameter that a rank holds.

    Attributes:
        start: first row; start + length may lie past the end, where padding is.
        length: rows held, padding included.
        replicas: how many neighbouring ranks of the axis hold this same segment.
        counted: this rank's copy is the one that counts in sums over the whole model.
    """

    start: int
    length: int
    replicas: int = 1
    counted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSpec:
    """Layout of one parameter.

    Attributes:
        global_shape: shape in the whole model, without padding.
        dim: the dim that is split; None when every rank holds the whole parameter.
        segments: what this rank holds of it, in local order; empty when dim is None.
        partial: after the last backward each rank holds only a part of the gradient: of the whole parameter when dim
            is None, else of its segments with several replicas.
    """

    global_shape: tuple[int, ...]
    dim: int | None = None
    segments: tuple[Segment, ...] = ()
    partial: bool = False

    @property
    def local_shape(self) -> tuple[int, ...]:
        if self.dim is None:
            return self.global_shape
        held = sum(segment.length for segment in self.segments)
        return (*self.global_shape[: self.dim], held, *self.global_shape[self.dim + 1 :])


def split_evenly(
    what: str,
    sizes: Sequence[int],
    axis: Axis,
    replicas: Sequence[int] | None = None,
    *,
    padded: bool = False,
    piece: Slice | None = None,
) -> tuple[Segment, ...]:
    """This rank's segment of each of several outputs that lie one after the other.

    Args:
        what: names the sizes in errors, e.g. "output size".
        sizes: length of every output in the whole model.
        replicas: per output, on how many neighbouring ranks each piece lies; must divide the axis' size.
        padded: a single size that the ranks do not divide is rounded up.
        piece: of a unit; only its slice of every segment.

    Raises:
        PlanError: a size cannot be split over the ranks, or the piece cannot be cut from what they hold.
    """
    segments: list[Segment] = []
    start = 0
    for size, copies in zip(sizes, replicas or [1] * len(sizes), strict=True):
        pieces = axis.size // copies
        if size % pieces and not padded:
            raise PlanError(
                f"{what} {size} is not divisible by {pieces} ranks (tensor-parallel degree {axis.size}); "
                f"choose a tp_degree that divides it"
            )
        length = -(-size // pieces)
        segments.append(Segment(start + axis.rank // copies * length, length, copies, axis.rank % copies == 0))
        start += size
    return tuple(segments) if piece is None else _sliced(what, sizes, segments, axis, piece)


def _sliced(
    what: str, sizes: Sequence[int], segments: Sequence[Segment], axis: Axis, piece: Slice
) -> tuple[Segment, ...]:
    """The same slice of every segment."""
    start, stop, parts = piece
    if any(segment.replicas > 1 for segment in segments):
        raise PlanError(
            f"{what}s {', '.join(map(str, sizes))}: a part that several of {axis.size} tensor-parallel ranks hold "
            "cannot be cut; cut before or after the unit, or lower tp_degree"
        )
    if any(size % parts for size in sizes) or any(edge % axis.size for edge in piece):
        raise PlanError(
            f"piece [{start}:{stop}] of {parts} parts cannot be cut from {what}s {', '.join(map(str, sizes))} over "
            f"{axis.size} ranks: the parts must divide every size, and tp_degree the ends of the piece"
        )
    return tuple(
        replace(
            segment,
            start=segment.start + segment.length * start // parts,
            length=segment.length * (stop - start) // parts,
        )
        for segment in segments
    )


def iter_parameters(modules: nn.Module | Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter, ShardSpec]]:
    """Every parameter once, with its qualified name and layout; a parameter without a spec is replicated whole.

    Args:
        modules: a module, or several by name (`<unit>.<parameter>` are then the names).
    """
    seen: set[int] = set()
    roots = {"": modules} if isinstance(modules, nn.Module) else modules
    for root_name, root in roots.items():
        for name, module in root.named_modules(prefix=root_name):
            specs: Mapping[str, ShardSpec] = getattr(module, "shards", {})
            for own_name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    spec = specs.get(own_name) or ShardSpec(global_shape=tuple(parameter.shape))
                    yield f"{name}.{own_name}" if name else own_name, parameter, spec


def local_of(full: Tensor, spec: ShardSpec) -> Tensor:
    """The rank's part (a new tensor) of a whole parameter; padding is zero."""
    assert tuple(full.shape) == spec.global_shape, (tuple(full.shape), spec)
    local = full.new_zeros(spec.local_shape)
    for mine, whole in _pairs(local, full, spec):
        mine.copy_(whole)
    return local


def gather_full(local: Tensor, spec: ShardSpec, axis: Axis) -> Tensor:
    """The whole parameter (or gradient, once summed) on every rank of the axis; for tests and export, not for speed.

    Each rank lays its counted segments into zeros and the ranks are summed, so no rank needs to know another's layout.
    Of a piece of a unit: the whole parameter with zeros where other pieces are, so the sum over all pieces is whole.
    """
    local = local.detach()
    if spec.dim is None:
        return local.clone()
    full = local.new_zeros(spec.global_shape)
    for mine, whole in _pairs(local, full, spec, counted_only=True):
        whole.copy_(mine)
    return all_reduce(full, axis)


def sum_partial_gradients(modules: nn.Module | Mapping[str, nn.Module], axis: Axis) -> None:
    """Sums over the axis the gradients of which each rank holds a part; call it once after the last backward.

    One flat all-reduce per dtype over the whole axis. A segment that r neighbours hold gets size/r slots in the buffer
    and each rank fills the slot of its neighbourhood, so replicated key/value heads need no process groups of their
    own; the zeros sent for the other neighbourhoods are at most one fused key/value gradient of the whole layer.
    """
    if axis.group is None:
        return
    places: dict[torch.dtype, list[tuple[Tensor, int, int]]] = {}  # gradient view, its slot, number of slots
    for _, parameter, spec in iter_parameters(modules):
        if spec.partial and parameter.grad is not None:
            places.setdefault(parameter.grad.dtype, []).extend(_slots(parameter.grad, spec, axis))
    for dtype, entries in places.items():
        flat = torch.zeros(sum(g.numel() * n for g, _, n in entries), dtype=dtype, device=entries[0][0].device)
        mine, end = [], 0
        for gradient, slot, slots in entries:
            size = gradient.numel()
            mine.append(flat[end + slot * size : end + (slot + 1) * size].view(gradient.shape).copy_(gradient))
            end += size * slots
        all_reduce(flat, axis)
        for (gradient, _, _), summed in zip(entries, mine):
            gradient.copy_(summed)


def counted_ranges(spec: ShardSpec, axis: Axis) -> list[tuple[int, int]]:
    """Which elements of a rank's parameter, flattened, count in sums over the whole model: first and last + 1 of runs.

    Over the axis, every element of the whole model counts once: whole parameters on rank 0, replicated segments on
    their first holder. Padding may be counted: its gradient is zero.
    """
    shape = spec.local_shape
    if spec.dim is None or all(segment.counted for segment in spec.segments):
        return [(0, prod(shape))] if spec.dim is not None or axis.rank == 0 else []
    inner = prod(shape[spec.dim + 1 :])
    ranges = []
    for row in range(prod(shape[: spec.dim])):
        start = row * shape[spec.dim] * inner
        for segment in spec.segments:
            stop = start + segment.length * inner
            if segment.counted:
                ranges.append((start, stop))
            start = stop
    return ranges


def square_sum(parts: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all elements: a float32 scalar, float64 for float64 tensors."""
    if not parts:
        return torch.zeros(())
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    return torch.stack([torch.linalg.vector_norm(part, dtype=wide) for part in parts]).square().sum()


def _pairs(local: Tensor, full: Tensor, spec: ShardSpec, *, counted_only: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """(view of local, view of full) of equal shape for every segment, without padding."""
    if spec.dim is None:
        yield local, full
        return
    offset = 0
    for segment in spec.segments:
        length = max(0, min(segment.length, spec.global_shape[spec.dim] - segment.start))
        if length and (segment.counted or not counted_only):
            yield local.narrow(spec.dim, offset, length), full.narrow(spec.dim, segment.start, length)
        offset += segment.length


def _slots(gradient: Tensor, spec: ShardSpec, axis: Axis) -> Iterator[tuple[Tensor, int, int]]:
    if spec.dim is None:
        yield gradient, 0, 1
        return
    parts = gradient.split_with_sizes([segment.length for segment in spec.segments], spec.dim)
    for part, segment in zip(parts, spec.segments):
        if segment.replicas > 1:
            yield part, axis.rank // segment.replicas, axis.size // segment.replicas
