"""The caches of a rank, made once and up front, and what their slots hold.

    slot   0  1  2 | 3  4  5 | ...        microbatch i has slots i*B to (i+1)*B - 1
    each unit that looks back at earlier tokens has room for `capacity` tokens in every slot

Which slot a sequence has is decided on pipeline rank 0; every stage meets the same items in the same order, so each
knows by itself how far a slot was written.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.models.cached_rows import CachedRows, Stale
from hybrid_runtime.serving.requests import Item


def make_caches(units: Mapping[str, nn.Module], num_slots: int, capacity: int) -> list[Tensor]:
    """Has every unit that needs one make its cache: those with a method `make_cache(num_slots, capacity) -> Tensor`.

    Raises:
        EnvironmentProblem: there is not enough memory.
    """
    caches: list[Tensor] = []
    for name, unit in units.items():
        make = getattr(unit, "make_cache", None)
        if make is None:
            continue
        try:
            caches.append(make(num_slots, capacity))
        except RuntimeError as problem:  # torch's OutOfMemoryError is one; on a CPU it has no type of its own
            raise EnvironmentProblem(
                f"no memory for the cache of unit {name!r}: {num_slots} sequences of {capacity} tokens "
                f"({str(problem).splitlines()[0]}); lower batch.global_batch_size or batch.sequence_length"
            ) from None
    return caches


class Slots:
    """What this stage's slots hold.

    Args:
        num_slots: over all microbatches.
        device: of the caches.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self._written = [0] * num_slots  # tokens, of the newest sequence or of the one before it
        self._device = device

    def enter(self, item: Item) -> CachedRows:
        """The item's rows; from now on they are in the caches."""
        stale = [Stale(row.slot, self._written[row.slot]) for row in item.rows if row.start == 0]
        for row in item.rows:
            self._written[row.slot] = row.start + row.length
        return CachedRows(item.rows, [left for left in stale if left.length], self._device)
