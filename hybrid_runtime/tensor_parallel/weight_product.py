"""What a linear leaves in the queue of weight gradients: X and dY of one microbatch.

With sequence parallelism one of the two is kept as the rank's own shard and gathered in W, never kept whole: a waiting
microbatch then costs T times less there, which is what sequence parallelism is for.

    column   X  (B, S/T, I) is gathered in W instead of in B: no more communication than without the split
    row      dY (B, S/T, O) is gathered in I, where dX needs it, and again in W: one all-gather more

Shapes: B microbatch, S sequence, T tp_degree, I inputs, O outputs, N = B*S tokens.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import Pending, start_gather_sequence
from hybrid_runtime.errors import RunError
from hybrid_runtime.tensor_parallel.gradients import gradient_buffer, weight_gradient


class WeightProduct:
    """dW = dY' X of one linear and one microbatch, to be computed later.

    Args:
        layer: with `accumulate_in_place`.
        x: (B, S, I), not written to again.
        dy: (B, S, O), not written to again.
        axis: over which `sharded` is gathered.
        sharded: which of the two is (B, S/T, ...).
    """

    __slots__ = ("_axis", "_gathering", "_sharded", "_versions", "_weight", "layer", "tensors")

    def __init__(
        self,
        layer: nn.Module,
        weight: Tensor,
        x: Tensor,
        dy: Tensor,
        axis: Axis,
        sharded: Literal["x", "dy"] | None = None,
    ) -> None:
        self.layer = layer
        self._weight = weight
        self.tensors = (x.detach(), dy.detach())  # detached: the graph behind X must not live on
        self._axis = axis
        self._sharded = sharded
        self._gathering: Pending | None = None
        self._versions = (x._version, dy._version)

    @property
    def gathers(self) -> bool:
        return self._sharded is not None

    def start(self) -> None:
        """Starts gathering the sharded one.

        Raises:
            RunError: X or dY was written to after its I.
        """
        for name, tensor, version in zip(("input", "output gradient"), self.tensors, self._versions):
            if tensor._version != version:
                raise RunError(
                    f"the {name} of a {type(self.layer).__name__} ({tuple(tensor.shape)}) was changed in place after "
                    "its input gradient was computed, but its weight gradient still needs it; change a copy instead"
                )
        if self._sharded is not None:
            self._gathering = start_gather_sequence(self.tensors[0 if self._sharded == "x" else 1], self._axis)

    def run(self) -> None:
        """Adds dY' X to the weight's gradient; after `start`."""
        x, dy = self.tensors
        if self._gathering is not None:
            gathered = self._gathering.wait()
            x, dy = (gathered, dy) if self._sharded == "x" else (x, gathered)
        x_NI, dy_NO = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        in_place = bool(self.layer.accumulate_in_place)
        dw = weight_gradient(self._weight, x_NI, dy_NO, in_place=in_place)
        if dw is not None:
            gradient_buffer(self._weight).add_(dw)
