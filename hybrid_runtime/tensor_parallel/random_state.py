"""Two random states per rank: one shared by the tensor-parallel ranks, one of each rank's own.

Dropout on what every rank holds alike must drop the same elements everywhere; dropout on what is split (attention
heads, or the sequence under sequence parallelism) must not:

    states = RandomStates(seed, tp_axis, device)
    x = dropout(x)                    # shared: torch's default generators, seeded alike on all ranks
    with states.sharded():
        heads = dropout(heads)        # this rank's own stream; the shared one stands still meanwhile

Recomputation replays both: `snapshot()` before the forward, `with states.replaying(snapshot):` around the second one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.tensor_parallel.initialise import derived_seed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Generator states (CPU, and CUDA where used), of the shared and of the rank's own stream."""

    shared: tuple[Tensor, ...]
    sharded: tuple[Tensor, ...]


class RandomStates:
    """Seeds torch's default generators with `seed` (the shared state) and keeps the rank's own state beside it.

    Args:
        seed: equal on all ranks of the axis; give data-parallel replicas and stages different ones.
        axis: the tensor-parallel axis.
        device: a CUDA device's generator is handled together with the CPU's.
    """

    def __init__(self, seed: int, axis: Axis, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._start = seed, axis.rank
        self.begin()

    def begin(self, *key: object) -> None:
        """Starts both states anew, from the seed and from whatever else is given (how far a training had come)."""
        seed, rank = self._start
        shared = derived_seed(seed, *key) if key else seed
        self._seed(derived_seed(shared, "sharded", rank))
        self._sharded = self._current()
        self._seed(shared)

    @contextmanager
    def sharded(self) -> Iterator[None]:
        """Inside, random numbers come from this rank's own stream; it goes on where it stopped the last time."""
        shared = self._current()
        self._set(self._sharded)
        try:
            yield
        finally:
            self._sharded = self._current()
            self._set(shared)

    def snapshot(self) -> Snapshot:
        """Both states as they are now."""
        return Snapshot(self._current(), self._sharded)

    @contextmanager
    def replaying(self, snapshot: Snapshot) -> Iterator[None]:
        """Inside, both streams start again from the snapshot; afterwards they are where they were before."""
        now = self.snapshot()
        self.restore(snapshot)
        try:
            yield
        finally:
            self.restore(now)

    def restore(self, snapshot: Snapshot) -> None:
        """Both streams go on from the snapshot."""
        self._set(snapshot.shared)
        self._sharded = snapshot.sharded

    def _seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(seed)

    def _current(self) -> tuple[Tensor, ...]:
        cpu = torch.get_rng_state()
        return (cpu, torch.cuda.get_rng_state(self._device)) if self._device.type == "cuda" else (cpu,)

    def _set(self, states: tuple[Tensor, ...]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)


class ParallelDropout(nn.Module):
    """Dropout that draws from the right stream.

    Args:
        p: probability of dropping an element.
        states: the rank's random states.
        sharded: True for activations that are split over the axis, False for those every rank holds alike.
    """

    def __init__(self, p: float, states: RandomStates, *, sharded: bool) -> None:
        super().__init__()
        self.p = p
        self.states = states
        self.sharded = sharded

    def forward(self, x: Tensor) -> Tensor:
        """Drops elements while training; returns `x` itself otherwise."""
        if not self.training or self.p == 0:
            return x
        if not self.sharded:
            return nn.functional.dropout(x, self.p)
        with self.states.sharded():
            return nn.functional.dropout(x, self.p)
