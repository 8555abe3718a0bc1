"""The rows of an item as units see them: which tokens lie in the carry, and where their keys and values go.

    item     row of slot 4: 3 tokens from position 0 | row of slot 6: 2 tokens from position 5
    carry    (1, N = 5, H)                              nothing is padded: all but attention works token by token
    cache    4: 0 1 2 . . . . .      6: 0 1 2 3 4 5 6 .

Made once per item and stage; what all attention units of the stage need alike is made by the first of them (`once`).
Whatever depends on lengths comes from the rows, which the host knows: no unit waits for the device.

Shapes: N tokens of all rows, R rows, S slots from the lowest to the highest of the item.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hybrid_runtime.serving.requests import Row

T = TypeVar("T")


class Stale(NamedTuple):
    """What a sequence that has ended left in a slot that begins anew: tokens 0 .. length."""

    slot: int
    length: int


class CachedRows:
    """One item on one stage.

    Args:
        rows: of different slots.
        stale: to be wiped out before anything is written.
        device: of the carry and the caches.

    Attributes:
        positions: (N,) int64, of each token in its sequence.
        slots: (N,) int64.
        are_single: every row is one token, as in a decode.
        last: (wanted rows,) int64, the last token of every row after which one is sampled; None where that is all
            tokens.
    """

    def __init__(self, rows: Sequence[Row], stale: Sequence[Stale], device: torch.device) -> None:
        self.rows = tuple(rows)
        self.stale = tuple(stale)
        self.device = device
        self.are_single = all(row.length == 1 for row in rows)
        self.positions, self.slots = _places(rows, single=self.are_single).to(device, non_blocking=True)
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when it was first called for this key."""
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = make()
        value: T = found
        return value

    @cached_property
    def last(self) -> Tensor | None:
        ends, wanted = 0, []
        for row in self.rows:
            ends += row.length
            if row.answer_index >= 0:
                wanted.append(ends - 1)
        return None if len(wanted) == ends else torch.tensor(wanted, dtype=torch.int64).to(self.device)

    @cached_property
    def first_slot(self) -> int:
        return min(row.slot for row in self.rows)

    @cached_property
    def num_slots(self) -> int:
        """S."""
        return max(row.slot for row in self.rows) + 1 - self.first_slot

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence, those of the item included."""
        return max(row.start + row.length for row in self.rows)

    @cached_property
    def row_of_slot(self) -> Tensor | None:
        """(S,) int64 of single rows; any row where a slot has none. None where rows are the slots, in order."""
        by_slot = {row.slot - self.first_slot: index for index, row in enumerate(self.rows)}
        found = [by_slot.get(slot, 0) for slot in range(self.num_slots)]
        return None if found == list(range(len(self.rows))) else torch.tensor(found).to(self.device)

    @cached_property
    def hidden(self) -> Tensor | None:
        """(S, longest) bool of single rows: what lies behind the end of a sequence. None where nothing does."""
        if all(row.start + 1 == self.longest for row in self.rows):
            return None
        ends_S = self.positions if self.row_of_slot is None else self.positions[self.row_of_slot]
        hidden: Tensor = torch.arange(self.longest, device=self.device) > ends_S.unsqueeze(1)
        return hidden


def _places(rows: Sequence[Row], *, single: bool) -> Tensor:
    """(2, N): positions and slots."""
    if single:
        return torch.tensor([[row.start for row in rows], [row.slot for row in rows]], dtype=torch.int64)
    positions = torch.cat([torch.arange(row.start, row.start + row.length) for row in rows])
    lengths = torch.tensor([row.length for row in rows])
    return torch.stack([positions, torch.tensor([row.slot for row in rows]).repeat_interleave(lengths)])
