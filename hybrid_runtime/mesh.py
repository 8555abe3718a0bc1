"""The mesh: global rank <-> (dp, pp, tp) coordinates and the members of every group. Arithmetic only.

tp is the fastest axis, then pp, then dp, so tensor-parallel peers are neighbours (one NVLink island) and data-parallel
replicas are the outermost blocks (the axis that may cross machines). Drawn for dp=2, pp=3, tp=2:

            dp 0                 dp 1
         pp 0  1  2           pp 0  1  2
    tp 0    0  2  4              6  8 10
    tp 1    1  3  5              7  9 11
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """One rank's coordinates."""

    rank: int
    dp: int
    pp: int
    tp: int

    def __str__(self) -> str:
        return f"rank {self.rank} (dp {self.dp}, pp {self.pp}, tp {self.tp})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Sizes of the three axes; every method is pure arithmetic.

    Raises:
        ValueError: a degree is below 1.
    """

    tp_degree: int = 1
    pp_degree: int = 1
    dp_degree: int = 1

    def __post_init__(self) -> None:
        for name in ("tp_degree", "pp_degree", "dp_degree"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def world_size(self) -> int:
        return self.tp_degree * self.pp_degree * self.dp_degree

    def place(self, rank: int) -> Place:
        """Coordinates of a global rank."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside the mesh of {self.world_size} ranks ({self})")
        block, tp = divmod(rank, self.tp_degree)
        dp, pp = divmod(block, self.pp_degree)
        return Place(rank, dp, pp, tp)

    def rank(self, *, dp: int, pp: int, tp: int) -> int:
        """Global rank of coordinates."""
        return (dp * self.pp_degree + pp) * self.tp_degree + tp

    def places(self) -> Iterator[Place]:
        return map(self.place, range(self.world_size))

    def tp_groups(self) -> list[list[int]]:
        """Global ranks of every tensor-parallel group, in the same order on every rank."""
        return [
            [self.rank(dp=dp, pp=pp, tp=tp) for tp in range(self.tp_degree)]
            for dp in range(self.dp_degree)
            for pp in range(self.pp_degree)
        ]

    def dp_groups(self) -> list[list[int]]:
        """Global ranks of every data-parallel group."""
        return [
            [self.rank(dp=dp, pp=pp, tp=tp) for dp in range(self.dp_degree)]
            for pp in range(self.pp_degree)
            for tp in range(self.tp_degree)
        ]

    def pp_columns(self) -> list[list[int]]:
        """Global ranks of every pipeline, first pp rank first."""
        return [
            [self.rank(dp=dp, pp=pp, tp=tp) for pp in range(self.pp_degree)]
            for dp in range(self.dp_degree)
            for tp in range(self.tp_degree)
        ]

    def __str__(self) -> str:
        return f"tp {self.tp_degree} x pp {self.pp_degree} x dp {self.dp_degree}"


def nearest_meshes(mesh: Mesh, devices: int) -> list[Mesh]:
    """Meshes of exactly `devices` ranks, the most similar to `mesh` first.

    Similar means: fewest changed degrees, then the smallest change. Used to name valid plans beside an impossible one.
    """
    candidates = [
        Mesh(tp_degree=tp, pp_degree=pp, dp_degree=devices // (tp * pp))
        for tp in divisors(devices)
        for pp in divisors(devices // tp)
    ]

    def distance(other: Mesh) -> tuple[int, int, int]:
        pairs = [
            (mesh.tp_degree, other.tp_degree),
            (mesh.pp_degree, other.pp_degree),
            (mesh.dp_degree, other.dp_degree),
        ]
        return sum(a != b for a, b in pairs), sum(abs(a - b) for a, b in pairs), other.tp_degree

    return sorted(candidates, key=distance)


def divisors(number: int) -> list[int]:
    """All divisors of a number above 0, ascending."""
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})
