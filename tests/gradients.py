"""What a rank's gradients add to sums over the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.tensor_parallel.shard import ShardSpec, counted_ranges


def counted_gradients(named: Iterable[tuple[str, nn.Parameter, ShardSpec]], axis: Axis) -> list[Tensor]:
    """Views of the elements that count on this rank of the axis."""
    return list(_counted(named, axis))


def _counted(named: Iterable[tuple[str, nn.Parameter, ShardSpec]], axis: Axis) -> Iterator[Tensor]:
    for _, parameter, spec in named:
        assert parameter.grad is not None
        for start, stop in counted_ranges(spec, axis):
            yield parameter.grad.flatten()[start:stop]
