"""A rank's share of a sharded embedding: its rows, the sums it takes part in, the gradients that come back.

EF   look a microbatch up in the own rows and start adding it to the sum on stage 0's rank
F    of stage 0 takes the sum
EB   on stage 0's rank: start sending the sum's gradient to all others;  on all ranks: add it into the own rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.comm.lookups import Broadcasts, Sums
from hybrid_runtime.comm.point_to_point import Spec, spec_of
from hybrid_runtime.comm.under_way import Ledger
from hybrid_runtime.models.unit import Carry, Microbatch
from hybrid_runtime.pipeline.stage import Stage

Zeros = Callable[[Tensor], Tensor]  # token ids -> the sum of no rows


class Lookups:
    """One rank's lookups.

    Args:
        rows: a stage of one unit, the rank's rows; None where it has none.
        zeros: what a rank without rows adds; only stage 0's rank may be one.
        ranks: pipeline ranks that take part; stage 0's first.
        count: microbatches of a step.
    """

    def __init__(
        self,
        rows: Stage | None,
        zeros: Zeros | None,
        ranks: Sequence[int],
        groups: Groups,
        count: int,
        ledger: Ledger | None,
    ) -> None:
        place = groups.place
        self._rows = rows
        self._zeros = zeros
        home = ranks[0]
        root = sorted(ranks).index(home)
        self._is_home = place.pp == home
        self._count = count
        self._device = groups.device
        self._sums = Sums(groups.lookups, root, self._is_home, groups.device, ledger)
        self._gradients = Broadcasts(groups.row_gradients, root, groups.device, ledger)
        self._spec: Spec = ()
        self._taken = 0  # gradients of this step

    @property
    def current_unit(self) -> str | None:
        """The unit that is running, for error messages."""
        return None if self._rows is None else self._rows.current_unit

    def look_up(self, i: int, microbatch: Microbatch) -> None:
        """EF of microbatch `i`."""
        if self._rows is None:
            assert self._zeros is not None, "a rank without rows looks up"
            part = self._zeros(microbatch.tokens)
        else:
            (part,) = self._rows.forward(i, (), microbatch)
        self._spec = spec_of((part,))
        self._sums.start(i, part.detach().contiguous())

    def take(self, i: int, name: str) -> Carry:
        """On stage 0's rank: the sum, (B, S, H), waited for under this name."""
        return (self._sums.take(i, name),)

    def let_go(self, i: int) -> None:
        """Stage 0's F is done with the sum; what it kept of it is an activation now."""
        self._sums.let_go(i)

    def send_gradient(self, gradient: Tensor) -> None:
        """On stage 0's rank: starts sending dx, (B, S, H)."""
        self._gradients.start(gradient)

    def take_gradient(self, name: str) -> tuple[Tensor, ...]:
        """On the other ranks: the next dx, in the order of stage 0's rank; give it back."""
        self._taken += 1
        return self._gradients.take(self._spec, name, more=self._taken < self._count)

    def add_gradient(self, i: int, gradient: Tensor) -> None:
        """EB of microbatch `i`: adds to the gradient of the rank's rows."""
        if self._rows is not None:
            self._rows.backward(i, (gradient.to(self._device),))

    def give_back(self, buffers: tuple[Tensor, ...]) -> None:
        """A gradient that was taken is done with."""
        self._gradients.give_back(buffers)

    def poll(self) -> None:
        """Drops what has been sent."""
        self._sums.poll()
        self._gradients.poll()

    def finish(self) -> None:
        """The step's end: waits until everything has been sent."""
        self._sums.finish()
        self._gradients.finish()
        self._taken = 0
