"""An item as numbers, of a fixed count: what ranks that did not make it must know.

    0  kind (stop, prefill, decode, sign of life)   1  microbatch   2  rows   3  tokens
    then for each row: slot, start, length, request, answer_index, temperature, top_k, top_p, seed

Fractions travel as the bits of a float64. Tokens do not belong to it: the first stage alone needs them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from hybrid_runtime.serving.requests import Item, ItemKind, Row, Sampling

_STOP: Final = 0
SIGN_OF_LIFE: Final = (3, 0, 0, 0)  # there is no item, and the next one is still to be waited for
_KINDS: Final[tuple[ItemKind, ...]] = ("prefill", "decode")
_HEAD, _ROW, _PER_ROW = 4, len(Row._fields), len(Row._fields) + 4


def descriptor_length(microbatch_size: int) -> int:
    """Numbers of a descriptor of at most so many rows."""
    return _HEAD + _PER_ROW * microbatch_size


def encode(item: Item | None) -> list[int]:
    """The numbers; None says that no item follows. Shorter than `descriptor_length` where there are fewer rows."""
    if item is None:
        return [_STOP, 0, 0, 0]
    numbers = [1 + _KINDS.index(item.kind), item.microbatch, len(item.rows), len(item.tokens)]
    for row, sampling in zip(item.rows, item.sampling, strict=True):
        numbers += row
        numbers += _encode_sampling(sampling)
    return numbers


def decode(numbers: Sequence[int], tokens: Sequence[int] = ()) -> Item | None:
    """What was encoded; with these tokens."""
    kind, microbatch, num_rows, _ = numbers[:_HEAD]
    if kind == _STOP:
        return None
    parts = [numbers[_HEAD + _PER_ROW * row :][:_PER_ROW] for row in range(num_rows)]
    return Item(
        _KINDS[kind - 1],
        microbatch,
        tuple(Row(*part[:_ROW]) for part in parts),
        tuple(tokens),
        tuple(_decode_sampling(tuple(part[_ROW:])) for part in parts),
    )


def num_tokens(numbers: Sequence[int]) -> int:
    """Tokens of the item; 0 if there is none."""
    return numbers[3]


@lru_cache(maxsize=1024)
def _encode_sampling(sampling: Sampling) -> tuple[int, ...]:
    top_p = 0.0 if sampling.top_p is None else sampling.top_p
    return _bits(sampling.temperature), sampling.top_k or 0, _bits(top_p), sampling.seed


@lru_cache(maxsize=1024)
def _decode_sampling(numbers: tuple[int, ...]) -> Sampling:
    temperature, top_k, top_p, seed = numbers
    return Sampling(_number(temperature), top_k or None, _number(top_p) or None, seed)


def _bits(number: float) -> int:
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits


def _number(bits: int) -> float:
    number: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return number
