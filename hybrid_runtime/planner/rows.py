"""Rows of the input embedding as a memory actuator: ranks that hold less get more rows, until all hold the same.

bytes   |  before            level  ---------------------
        |      ##  ##                ##  ++  ##  ++        ++ rows of the embedding
        |  ##  ##  ##  ##            ##  ##  ##  ##
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def water_level(held_bytes: Sequence[int], poured_bytes: int) -> Fraction:
    """The level y with sum(max(y - held, 0)) = poured."""
    assert held_bytes, "no rank to fill"
    lowest = sorted(held_bytes)
    level = Fraction(0)
    for count in range(1, len(lowest) + 1):
        level = Fraction(sum(lowest[:count]) + poured_bytes, count)
        if count == len(lowest) or level <= lowest[count]:
            break
    return level


def fill_rows(held_bytes: Sequence[int], num_rows: int, bytes_per_row: Fraction, multiple: int) -> tuple[int, ...]:
    """How many rows each rank takes, so that the fullest holds as little as possible.

    Args:
        held_bytes: per pipeline rank, without the embedding.
        bytes_per_row: what a row costs a rank, its gradient and optimizer state included; above 0.
        multiple: rows come in multiples of it.

    Returns:
        Multiples of `multiple` that add up to num_rows; what is left over goes to the last rank that has
        rows.
    """
    bytes_per_block = bytes_per_row * multiple
    blocks, rest = divmod(num_rows, multiple)
    level = water_level(held_bytes, int(blocks * bytes_per_block))
    taken = [max(0, int((level - held) / bytes_per_block)) for held in held_bytes]
    while sum(taken) > blocks:  # rounding of the level itself
        taken[max(range(len(taken)), key=lambda rank: held_bytes[rank] + taken[rank] * bytes_per_block)] -= 1
    for _ in range(blocks - sum(taken)):
        taken[min(range(len(taken)), key=lambda rank: (held_bytes[rank] + taken[rank] * bytes_per_block, rank))] += 1
    rows = [count * multiple for count in taken]
    lowest = min(range(len(rows)), key=lambda rank: (held_bytes[rank], rank))
    rows[max((rank for rank, count in enumerate(rows) if count), default=lowest)] += rest
    return tuple(rows)


def rows_multiple(vocab_size: int, tp_degree: int, num_ranks: int) -> int:
    """Multiples of 64 rows per tensor-parallel rank, which kernels like; of 1 where that would be too coarse."""
    return 64 * tp_degree if vocab_size >= 64 * 64 * tp_degree * num_ranks else tp_degree
