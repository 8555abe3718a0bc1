"""Causal attention over whole sequences, or over the documents of a packed microbatch, each on its own.

    document  a a a b b      a token sees itself and what is before it in its document: the blocks on the diagonal
            a x
            a x x            half precision on CUDA: one kernel for all documents (FlashAttention with variable lengths,
            a x x x          Dao 2023)
            b       x        elsewhere: a call per document
            b       x x

No mask is made: it would be S times as large as the tokens, and the work outside of the blocks would be done in vain.

Shapes: B microbatch, S sequence, D head_dim, Q query heads and K key (= value) heads on this rank, N = B*S tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hybrid_runtime.models.unit import Documents

_FLASH_TYPES = (torch.bfloat16, torch.float16)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents | None = None) -> Tensor:
    """(B, S, Q*D) from q (B, Q, S, D), k and v (B, K, S, D)."""
    if documents is None:
        y_BQSD = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return y_BQSD.transpose(1, 2).flatten(2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attend = _all_at_once if q.device.type == "cuda" and q.dtype in _FLASH_TYPES else _one_by_one
    y_NQD = attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), documents)  # views of the fused heads
    return y_NQD.view(*q.shape[:2], -1)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    found = []
    for q_sQD, k_sKD, v_sKD in zip(*(x.split_with_sizes(documents.lengths) for x in (q, k, v))):
        q_QsD, k_KsD, v_KsD = (x.transpose(0, 1).unsqueeze(0) for x in (q_sQD, k_sKD, v_sKD))
        y = scaled_dot_product_attention(q_QsD, k_KsD, v_KsD, is_causal=True, enable_gqa=grouped)
        found.append(y.squeeze(0).transpose(0, 1))
    return torch.cat(found)


def _all_at_once(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """The kernel behind `torch.nn.attention.varlen`, whose own arguments change from one torch to the next."""
    longest = max(documents.lengths)
    bounds = documents.bounds
    y: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, bounds, bounds, longest, longest, 0.0, True, return_debug_mask=False
    )[0]
    return y
