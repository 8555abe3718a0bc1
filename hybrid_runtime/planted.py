"""The planted imbalance: what the self-test makes every rank do, so that its records can be judged like a model's.

In one planted step every rank multiplies the same matrices `BASE_UNITS` times; one rank, another in every step, does a
few units more, in three parts. Counting parts 1 .. k, its share lies `LEVELS[k - 1]` above every other rank's:

    rank 0   |-------- 0F0 --------|                       part 0, every rank: BASE_UNITS units
    rank 1   |-------- 0F0 --------|0F1|--0F2--|0F3|       parts 1 2 3: up to 0.5, 1.5 and 2 points more than rank 0
    rank 2   |-------- 0F0 --------|

Because the extra work goes round, a slow device is no imbalance here: the instrument is tested, not the silicon.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

LEVELS = (Fraction(5, 1000), Fraction(15, 1000), Fraction(20, 1000))  # gaps between shares, against a limit of 1 point
LIMIT = Fraction(1, 100)
BASE_UNITS = 200


def extra_units(level: Fraction, ranks: int) -> int:
    """Units beyond BASE_UNITS that lift one of `ranks` shares by `level` above the others, to the nearest whole unit.

    With x = extra / BASE_UNITS the gap is x / (ranks + x).
    """
    return round(BASE_UNITS * level * ranks / (1 - level))


def planted_gap(extra: int, ranks: int) -> Fraction:
    """The gap between shares that so many extra units make, exactly."""
    return Fraction(extra, BASE_UNITS * ranks + extra)


def part_units(ranks: int) -> tuple[int, ...]:
    """Units of parts 1, 2, 3 of the planted rank."""
    totals = [0, *(extra_units(level, ranks) for level in LEVELS)]
    return tuple(after - before for before, after in pairwise(totals))


def part_name(part: int) -> str:
    """The span of a part: an ordinary compute action, so that it takes the way of any other."""
    return f"0F{part}"
