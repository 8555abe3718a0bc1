"""Which pipeline rank a stage lives on.

A placement is a plain tuple `stage_to_rank`: entry k is the pipeline rank of stage k. Everything in this folder takes
one as an argument and works for several stages on a rank; today's schedules use one stage on each.

    linear, 4 ranks      stage  0  1  2  3
                         rank   0  1  2  3
"""

from __future__ import annotations

from collections.abc import Sequence

StageToRank = Sequence[int]


def linear(pp_degree: int) -> tuple[int, ...]:
    """One stage on every rank, in order."""
    return tuple(range(pp_degree))
