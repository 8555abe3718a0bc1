"""The groups of a mesh as one rank sees them, without the others and without torch.distributed.

Tensor-parallel ranks on CPUs meet in shared memory, and what a rank does there (a copy into its slot, a byte into a
pipe, one addition per peer) is CPU time of its own. So a lone rank does all of it, and hears its own byte:

    slots of peers   random values, never written        pipes   what it tells, it hears
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from hybrid_runtime.comm.groups import Backend, GroupMaker, Groups, make_groups
from hybrid_runtime.comm.shared_memory import SLOT_BYTES, SharedMemory
from hybrid_runtime.lone.group import LoneGroup, Traffic, unit_values
from hybrid_runtime.mesh import Mesh

_TIMEOUT = timedelta(seconds=10)  # what a rank tells itself is there at once


class Echo(SharedMemory):
    """Shared memory whose peers are silent: only the rank's own bytes are heard.

    Args:
        dtype: of the values that the peers' slots seem to hold.
    """

    def __init__(self, rank: int, size: int, dtype: torch.dtype, traffic: Traffic) -> None:
        pipes = {peer: os.pipe() for peer in range(size) if peer != rank}
        hear = {peer: ends[0] for peer, ends in pipes.items()}
        slots = [unit_values(2 * SLOT_BYTES, dtype) for _ in range(size)]
        super().__init__(rank, slots, hear, [ends[1] for ends in pipes.values()], _TIMEOUT)
        weakref.finalize(self, _close, [end for ends in pipes.values() for end in ends])
        self._size = size
        self._traffic = traffic

    def start(self, x: Tensor) -> SharedMemory:
        self._traffic.count("shared_all_reduce", self._size, x.nbytes)
        return super().start(x)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class LoneMaker(GroupMaker):
    """Makes groups of one present member."""

    dtype: torch.dtype
    traffic: Traffic

    def group(self, ranks: list[int], backend: Backend | None = None) -> dist.ProcessGroup:
        place = ranks.index(self.rank) if self.rank in ranks else 0  # of others' groups nothing is ever asked
        return LoneGroup(place, len(ranks), self.traffic)

    def shared_memory(self, group: dist.ProcessGroup) -> SharedMemory:
        return Echo(group.rank(), group.size(), self.dtype, self.traffic)


def lone_groups(
    mesh: Mesh,
    rank: int,
    edges: Iterable[tuple[int, int]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    traffic: Traffic,
    tied_pairs: Iterable[tuple[int, int]] = (),
    lookup_ranks: Sequence[int] = (),
) -> Groups:
    """All groups that `join_groups` would give to global rank `rank`; arguments as there.

    Args:
        dtype: of activations.
        traffic: where all calls are counted.
    """
    backend: Backend = "gloo" if device.type == "cpu" else "nccl"
    maker = LoneMaker(rank, backend, _TIMEOUT, dtype, traffic)
    return make_groups(maker, mesh, edges, device, tied_pairs, lookup_ranks)
