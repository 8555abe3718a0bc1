"""Which pipeline rank a stage lives on.

A placement is a plain tuple `stage_to_rank`: entry k is the pipeline rank of stage k. Everything in this folder takes
one as an argument and works for any number of stages on a rank.

    linear, 4 ranks      stage  0  1  2  3
                         rank   0  1  2  3

    loop, 4 ranks        stage  0  1  2  3  4  5  6  7
                         rank   0  1  2  3  0  1  2  3

    V, 4 ranks           stage  0  1  2  3  4  5  6  7
                         rank   0  1  2  3  3  2  1  0      the last rank hands stage 3's output to stage 4 itself
"""

from __future__ import annotations

from collections.abc import Sequence

StageToRank = Sequence[int]


def linear(pp_degree: int, virtual_stages: int = 1) -> tuple[int, ...]:
    """One stage on every rank, in order."""
    assert virtual_stages == 1, virtual_stages
    return tuple(range(pp_degree))


def loop(pp_degree: int, virtual_stages: int = 2) -> tuple[int, ...]:
    """Stage k on rank k mod pp_degree: the stages go around the ranks `virtual_stages` times."""
    return tuple(range(pp_degree)) * virtual_stages


def v_shape(pp_degree: int, virtual_stages: int = 2) -> tuple[int, ...]:
    """Down the ranks and up again: rank r holds stages r and 2 * pp_degree - 1 - r (a zigzag for more than two)."""
    down, up = tuple(range(pp_degree)), tuple(reversed(range(pp_degree)))
    return tuple(rank for turn in range(virtual_stages) for rank in (up if turn % 2 else down))
