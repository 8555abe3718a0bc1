"""Process groups from the mesh. One object per rank holds them; nothing here is global.

Which groups exist, drawn for one replica of tp=2 x pp=3 (ranks as in mesh.py):

    tp groups      {0 1} {2 3} {4 5}          on CPUs of one host also joined by shared memory
    pipe edges     0>2 2>4 1>3 3>5 (activations)   2>0 4>2 3>1 5>3 (gradients)     one group per directed edge
    replica        {0 .. 5}                        gradient norm, counted once over all of it
    dp groups      same pp and tp in every replica
    tied           two ranks of a pipeline         for each pair that holds the same rows of a tied weight
    lookups        the ranks of a pipeline that hold rows of a sharded embedding; row_gradients: the same ranks
    control        all ranks, gloo, CPU            barriers, losses, turns: never on the device's streams

A directed edge has its own group because messages of one communicator are first-in-first-out: with both directions on
one, looped schedules form cycles across ranks (pytorch issue 195760). Lookups and their gradients likewise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from hybrid_runtime.comm.axis import Axis, Clocks
from hybrid_runtime.comm.shared_memory import SharedMemory, open_shared_memory
from hybrid_runtime.mesh import Mesh, Place

Backend = Literal["nccl", "gloo"]
BARRIER, ALL = "barrier", "all"  # as the status file says what is waited for, and with whom


@dataclass(frozen=True, slots=True)
class Edge:
    """A directed pipeline edge as one of its two ends sees it; `peer` is the other end's rank in the edge's group."""

    source_pp: int
    target_pp: int
    peer: int
    group: dist.ProcessGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Everything a rank needs to talk to the others."""

    mesh: Mesh
    place: Place
    device: torch.device
    tp: Axis
    dp: Axis
    replica: Axis
    tied: dict[tuple[int, int], Axis]
    lookups: Axis
    row_gradients: Axis
    control: dist.ProcessGroup
    edges: dict[tuple[int, int], Edge]
    clocks: Clocks

    def barrier(self) -> None:
        """All ranks meet, on the host."""
        with self.clocks.watching(BARRIER, ALL):
            dist.barrier(group=self.control)

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers on every rank, ordered by rank (float64: integers are exact up to 2**53)."""
        mine = torch.tensor(numbers, dtype=torch.float64)
        if self.mesh.world_size == 1:
            return [mine.tolist()]
        everyone = [torch.empty_like(mine) for _ in range(self.mesh.world_size)]
        with self.clocks.watching("gather_numbers", ALL):
            dist.all_gather(everyone, mine, group=self.control)
        return [row.tolist() for row in everyone]

    def gather_objects(self, value: object) -> list[object]:
        """Every rank's (small, picklable) object on every rank, ordered by rank; set-up only, never in a step."""
        everyone: list[object] = [None] * self.mesh.world_size
        with self.clocks.watching("gather_objects", ALL):
            dist.all_gather_object(everyone, value, group=self.control)
        return everyone


def join_groups(
    mesh: Mesh,
    edges: Iterable[tuple[int, int]],
    *,
    device: torch.device,
    backend: Backend,
    tied_pairs: Iterable[tuple[int, int]] = (),
    lookup_ranks: Sequence[int] = (),
    timeout: timedelta = timedelta(minutes=30),
) -> Groups:
    """Creates all groups; torch.distributed must be initialised, and every rank must call this with equal arguments.

    Args:
        edges: directed pairs of pp ranks that exchange messages, e.g. {(0, 1), (1, 0)}.
        tied_pairs: pp ranks that hold the same rows of a tied weight; of each pair, two different ones.
        lookup_ranks: pp ranks that take part in the lookups of a sharded embedding.
        timeout: how long a collective may wait for a peer.
    """
    return make_groups(GroupMaker(dist.get_rank(), backend, timeout), mesh, edges, device, tied_pairs, lookup_ranks)


def make_groups(
    new: GroupMaker,
    mesh: Mesh,
    edges: Iterable[tuple[int, int]],
    device: torch.device,
    tied_pairs: Iterable[tuple[int, int]] = (),
    lookup_ranks: Sequence[int] = (),
) -> Groups:
    """The groups of the mesh as the rank of `new` sees them; arguments as of `join_groups`."""
    place = mesh.place(new.rank)
    clocks = Clocks()
    return Groups(
        mesh=mesh,
        place=place,
        device=device,
        tp=new.axis("tp", mesh.tp_groups(), clocks, share_memory=device.type == "cpu" and new.backend == "gloo"),
        dp=new.axis("dp", mesh.dp_groups(), clocks),
        replica=new.axis("replica", _replicas(mesh), clocks),
        tied={pair: new.axis(_pp(pair), _among(mesh, pair), clocks) for pair in tied_pairs},
        lookups=new.axis(_pp(lookup_ranks), _among(mesh, lookup_ranks), clocks),
        row_gradients=new.axis(_pp(lookup_ranks), _among(mesh, lookup_ranks), clocks),
        control=new.control(mesh.world_size),
        edges=new.edges(mesh, sorted(set(edges)), place),
        clocks=clocks,
    )


@dataclass(frozen=True, slots=True)
class GroupMaker:
    """Creates groups in one order on every rank, which torch.distributed requires.

    A rank that runs alone makes its groups another way (lone/maker.py); which groups there are is said here only.
    """

    rank: int
    backend: Backend
    timeout: timedelta

    def group(self, ranks: list[int], backend: Backend | None = None) -> dist.ProcessGroup:
        """A group of these global ranks; every rank of the world calls it."""
        group: dist.ProcessGroup = dist.new_group(ranks, timeout=self.timeout, backend=backend or self.backend)
        return group

    def shared_memory(self, group: dist.ProcessGroup) -> SharedMemory | None:
        """What joins the ranks of a gloo group beside it, if they are on one host."""
        return open_shared_memory(group, self.timeout)

    def axis(self, name: str, families: list[list[int]], clocks: Clocks, *, share_memory: bool = False) -> Axis:
        mine = Axis(clocks=clocks, name=name)
        for ranks in families:
            if len(ranks) == 1:
                continue
            group = self.group(ranks)
            if self.rank in ranks:
                shared = self.shared_memory(group) if share_memory else None
                mine = Axis(len(ranks), ranks.index(self.rank), group, clocks, shared, name)
        return mine

    def control(self, world_size: int) -> dist.ProcessGroup:
        return self.group(list(range(world_size)), "gloo")

    def edges(self, mesh: Mesh, pairs: list[tuple[int, int]], place: Place) -> dict[tuple[int, int], Edge]:
        mine: dict[tuple[int, int], Edge] = {}
        for column in mesh.pp_columns():
            for source, target in pairs:
                ends = sorted((column[source], column[target]))
                group = self.group(ends)
                if place.rank in ends:
                    mine[source, target] = Edge(source, target, 1 - ends.index(place.rank), group)
        return mine


def _pp(ranks: Iterable[int]) -> str:
    """The name of an axis over some ranks of every pipeline, which says which."""
    return "pp=" + ",".join(map(str, ranks))


def _replicas(mesh: Mesh) -> list[list[int]]:
    size = mesh.tp_degree * mesh.pp_degree
    return [list(range(dp * size, (dp + 1) * size)) for dp in range(mesh.dp_degree)]


def _among(mesh: Mesh, pp_ranks: Sequence[int]) -> list[list[int]]:
    """Some ranks of every pipeline; none where fewer than two are named."""
    return [sorted(column[rank] for rank in pp_ranks) for column in mesh.pp_columns()] if len(pp_ranks) > 1 else []
