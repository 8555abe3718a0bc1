"""Attention of an item's rows to what the cache holds of their sequences, and to themselves.

    one token a row    all slots of the item at once: a batched product with a slice of the cache, no copy of it
    several tokens     row by row: causal among themselves if they are the first of their sequence, else with a mask

Grouped queries share a key/value head without its being repeated: they are rows of one product.

A new sequence finds its slot wiped out as far as the one before it had written: a product with a probability of 0 is no
protection from a nan that was left there.

Shapes: N tokens of all rows, S slots of the item, L the longest sequence, D head_dim, Q query heads and K key (= value)
heads on this rank (of a piece, its own), G = Q/K.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hybrid_runtime.models.cached_rows import CachedRows


class KvCache:
    """Keys and values of every slot, of one attention unit on one rank; allocated at once and never again.

    Args:
        num_slots: sequences.
        num_heads: K.
        capacity: tokens of a slot.
        head_dim: D.
    """

    def __init__(
        self, num_slots: int, num_heads: int, capacity: int, head_dim: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (2, num_slots, num_heads, capacity, head_dim)
        self.capacity, self.num_heads = capacity, num_heads
        self.both = torch.zeros(shape, device=device, dtype=dtype)
        self.keys, self.values = self.both  # (slots, K, capacity, D)

    @property
    def nbytes(self) -> int:
        return self.both.nbytes

    @cached_property
    def heads(self) -> tuple[Tensor, Tensor]:
        """Keys and values, each (slots * K, capacity, D)."""
        return self.keys.flatten(0, 1), self.values.flatten(0, 1)

    @cached_property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """Keys and values, each (slots * K * capacity, D)."""
        return self.keys.flatten(0, 2), self.values.flatten(0, 2)

    def write(self, k_NKD: Tensor, v_NKD: Tensor, rows: CachedRows) -> None:
        """Puts the tokens where they belong."""
        for slot, length in rows.stale:
            self.both[:, slot, :, :length].zero_()
        places = rows.once(("places", self.num_heads), lambda: self._places(rows))
        keys, values = self.tokens
        keys.index_copy_(0, places, k_NKD.flatten(0, 1))
        values.index_copy_(0, places, v_NKD.flatten(0, 1))

    def _places(self, rows: CachedRows) -> Tensor:
        """(N * K,) in `tokens`."""
        heads_K = torch.arange(self.num_heads, device=rows.device)
        heads_NK = rows.slots.unsqueeze(1) * self.num_heads + heads_K
        places_NK: Tensor = heads_NK * self.capacity + rows.positions.unsqueeze(1)
        return places_NK.flatten()


def cached_attention(q_NQD: Tensor, k_NKD: Tensor, v_NKD: Tensor, cache: KvCache, rows: CachedRows) -> Tensor:
    """(N, Q*D); writes keys and values into the cache first."""
    cache.write(k_NKD, v_NKD, rows)
    if rows.are_single:
        return _single_rows(q_NQD, cache, rows)
    return _several_tokens(q_NQD, k_NKD, v_NKD, cache, rows)


def _single_rows(q_NQD: Tensor, cache: KvCache, rows: CachedRows) -> Tensor:
    q_SQD = q_NQD if rows.row_of_slot is None else q_NQD[rows.row_of_slot]
    on_gpu = q_NQD.device.type == "cuda"
    y_SX = (_single_fused if on_gpu else _single_products)(q_SQD, cache, rows)
    if rows.row_of_slot is None:
        return y_SX
    slots_N = rows.once("slots", lambda: rows.slots - rows.first_slot)
    return y_SX[slots_N]


def _single_products(q_SQD: Tensor, cache: KvCache, rows: CachedRows) -> Tensor:
    """Two batched products; on a CPU faster than the fused kernel, which works in blocks of queries."""
    heads, (slots, num_q, head_dim) = cache.num_heads, q_SQD.shape
    span = slice(rows.first_slot * heads, (rows.first_slot + rows.num_slots) * heads)
    keys_XLD, values_XLD = (part[span, : rows.longest] for part in cache.heads)
    q_XGD = q_SQD.reshape(slots * heads, num_q // heads, head_dim)
    mask = rows.once(("mask of heads", heads, q_SQD.dtype), lambda: _mask_of_heads(rows, heads, q_SQD.dtype))
    beta = 0 if rows.hidden is None else 1
    scores_XGL = torch.baddbmm(mask, q_XGD, keys_XLD.transpose(1, 2), beta=beta, alpha=1 / math.sqrt(head_dim))
    return scores_XGL.softmax(-1).bmm(values_XLD).view(slots, num_q * head_dim)


def _mask_of_heads(rows: CachedRows, heads: int, dtype: torch.dtype) -> Tensor:
    """(S*K, 1, L), or anything that can be added where nothing is hidden (it is then not read)."""
    mask_SL = _mask(rows.hidden, dtype, rows.device)
    if mask_SL is None:
        return torch.zeros((), dtype=dtype, device=rows.device)
    return mask_SL.repeat_interleave(heads, 0).unsqueeze(1)


def _single_fused(q_SQD: Tensor, cache: KvCache, rows: CachedRows) -> Tensor:
    """One kernel, with the queries of a head as its sequence."""
    slots, num_q, head_dim = q_SQD.shape
    q_SKGD = q_SQD.reshape(slots, cache.num_heads, -1, head_dim)
    span = slice(rows.first_slot, rows.first_slot + rows.num_slots)
    keys, values = (part[span, :, : rows.longest] for part in (cache.keys, cache.values))
    mask_SL = rows.once(("mask", q_SQD.dtype), lambda: (_mask(rows.hidden, q_SQD.dtype, rows.device),))[0]
    mask = None if mask_SL is None else mask_SL[:, None, None]
    return scaled_dot_product_attention(q_SKGD, keys, values, attn_mask=mask).reshape(slots, num_q * head_dim)


def _mask(hidden: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """What is added to scores."""
    if hidden is None:
        return None
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


def _several_tokens(q_NQD: Tensor, k_NKD: Tensor, v_NKD: Tensor, cache: KvCache, rows: CachedRows) -> Tensor:
    found, begin = [], 0
    for row in rows.rows:
        here = slice(begin, begin + row.length)
        begin += row.length
        if row.start == 0:
            keys, values = (part[here].transpose(0, 1) for part in (k_NKD, v_NKD))
        else:
            keys, values = (part[row.slot, :, : row.start + row.length] for part in (cache.keys, cache.values))
        mask = None if row.start == 0 else _mask_of_chunk(rows, row.start, row.length, q_NQD.dtype)
        found.append(_attend(q_NQD[here], keys, values, mask))
    return found[0] if len(found) == 1 else torch.cat(found)


def _attend(q_sQD: Tensor, k_KLD: Tensor, v_KLD: Tensor, mask: Tensor | None) -> Tensor:
    """(s, Q*D) of one row; heads that share keys are neighbours in a batch of K."""
    length, num_q, head_dim = q_sQD.shape
    num_kv = len(k_KLD)
    q_KGsD = q_sQD.view(length, num_kv, num_q // num_kv, head_dim).permute(1, 2, 0, 3)
    k, v = (part.unsqueeze(1).expand(-1, num_q // num_kv, -1, -1) for part in (k_KLD, v_KLD))
    y_KGsD = scaled_dot_product_attention(q_KGsD, k, v, attn_mask=mask, is_causal=mask is None)
    return y_KGsD.permute(2, 0, 1, 3).reshape(length, num_q * head_dim)


def _mask_of_chunk(rows: CachedRows, start: int, length: int, dtype: torch.dtype) -> Tensor:
    """(length, start + length): tokens of a chunk see all before it, and of it those before them."""

    def make() -> Tensor:
        return torch.full((length, start + length), -torch.inf, dtype=dtype, device=rows.device).triu_(start + 1)

    return rows.once(("mask of a chunk", start, length, dtype), make)
