"""Bytes of the cache of keys and values: known before anything is built, and equal to what a rank then allocates.

    2 (keys, values) * slots * capacity * key/value heads on the rank * head_dim * bytes of a number, per attention unit

Of K key/value heads a tensor-parallel rank holds K/T, or one where there are fewer heads than ranks; of a piece a:b of
a unit (pieces.py), (b - a)/T.
"""

from __future__ import annotations

from collections.abc import Iterable

from hybrid_runtime.pieces import read_piece, unit_of
from hybrid_runtime.shapes import LlamaShape


def kv_heads(shape: LlamaShape, tp_degree: int) -> int:
    """Key/value heads of a whole attention unit on each tensor-parallel rank."""
    return max(1, shape.num_kv_heads // tp_degree)


def kv_heads_here(unit: str, shape: LlamaShape, tp_degree: int) -> int:
    """Key/value heads of a unit, or a piece of one, on each tensor-parallel rank; 0 if it is no attention."""
    if not unit_of(unit).endswith(".attn"):
        return 0
    piece = read_piece(unit)
    return kv_heads(shape, tp_degree) if piece is None else piece.parts // tp_degree


def kv_cache_bytes(
    units: Iterable[str], shape: LlamaShape, *, num_slots: int, capacity: int, tp_degree: int, element_bytes: int
) -> int:
    """Bytes on each tensor-parallel rank that has these units.

    Args:
        units: names of units or of pieces.
        num_slots: sequences that have a slot at once, `Batch.global_batch_size`.
        capacity: tokens of one slot, `Batch.sequence_length`.
        element_bytes: of a number of the model's dtype.
    """
    heads = sum(kv_heads_here(unit, shape, tp_degree) for unit in units)
    return 2 * num_slots * capacity * heads * shape.head_dim * element_bytes
