"""How large an item of served rows is: the few numbers that decide what it costs.

tokens   go through every linear layer
pairs    (query, key) that attention multiplies: a token attends to itself and all before it
keys     cached ones that attention reads, of every row once
wanted   rows whose last token goes through the head
"""

from __future__ import annotations

from typing import NamedTuple

from hybrid_runtime.serving.requests import Item, ItemKind


class ItemSize(NamedTuple):
    """What an item consists of; `rows` are parts of sequences."""

    kind: ItemKind
    rows: int
    tokens: int
    pairs: int
    keys: int
    wanted: int


def size_of(item: Item) -> ItemSize:
    """The size of an item."""
    rows = item.rows
    if item.kind == "decode":
        keys = len(rows) + sum([row.start for row in rows])
        return ItemSize(item.kind, len(rows), len(rows), keys, keys, len(rows))
    pairs = keys = 0
    for row in item.rows:
        pairs += _pairs(row.start, row.length)
        keys += row.start + row.length
    return ItemSize(item.kind, len(item.rows), len(item.tokens), pairs, keys, item.num_wanted)


def prefill_size(rows: int, start: int, length: int, wanted: int) -> ItemSize:
    """A chunk of `length` tokens of each of some prompts, behind `start` tokens that are cached."""
    return ItemSize("prefill", rows, rows * length, rows * _pairs(start, length), rows * (start + length), wanted)


def decode_size(rows: int, context: int) -> ItemSize:
    """The next token of each of some sequences that have so many, the next one included."""
    return ItemSize("decode", rows, rows, rows * context, rows * context, rows)


def _pairs(start: int, length: int) -> int:
    return length * start + length * (length + 1) // 2
