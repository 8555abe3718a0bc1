"""The Llama family (Llama, Mistral, Qwen2, Qwen3) as units over tensor-parallel layers.

    embedding   tokens (B, S) -> x                                 its rows may be sharded over the pipeline ranks
    k.attn      x + output(attention(rotary(qkv(norm(x)))))        grouped-query attention, causal; Qwen3 norms heads
    k.mlp       x + down(swiglu(gate_up(norm(x))))
    head        x -> sum of token losses, or this rank's logits (B, S, V/T) when there are no targets

Where requests are served, attention is to a cache of keys and values (cached_attention.py), and the head's logits are
(1, wanted rows, V/T).

The carry between units is one tensor x: (B, S, H), or (B, S/T, H) with sequence parallelism. Attention may be cut
between key/value heads (with their query heads), an MLP between neurons; between such pieces travel two (residual.py).

Shapes: B microbatch, S sequence, H hidden, V vocabulary (padded), T tp_degree, D head_dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from hybrid_runtime.errors import PlanError
from hybrid_runtime.models.attention import causal_attention
from hybrid_runtime.models.cached_attention import KvCache, cached_attention
from hybrid_runtime.models.cached_rows import CachedRows
from hybrid_runtime.models.residual import residual_sum
from hybrid_runtime.models.rms_norm import RMSNorm
from hybrid_runtime.models.rotary import rotary_tables, rotated, rotated_heads
from hybrid_runtime.models.swiglu import compiled_swiglu, swiglu
from hybrid_runtime.models.unit import NO_TARGET, BuildContext, Carry, Documents, Microbatch, ShardedRows, UnitSpec
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from hybrid_runtime.tensor_parallel.embedding import EmbeddingRows, SummedRows, VocabParallelEmbedding
from hybrid_runtime.tensor_parallel.initialise import Init
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear
from hybrid_runtime.tensor_parallel.recompute import KEEP
from hybrid_runtime.tensor_parallel.shard import ShardSpec

STD = 0.02  # of every weight; projections back onto the carry are scaled by 1/sqrt(2 * layers) (GPT-2)


def llama_units(shape: LlamaShape) -> list[UnitSpec]:
    """Specs of all units, in order; nothing is built yet."""
    tied = {"output.weight": ("embedding", "tokens.weight")} if shape.tie_embeddings else {}
    builders: dict[str, Callable[[LlamaShape, BuildContext], nn.Module]] = {
        "embedding": EmbeddingUnit,
        "attn": AttentionUnit,
        "mlp": MlpUnit,
        "head": HeadUnit,
    }
    rows = ShardedRows(
        shape.vocab_size,
        lambda context, start, stop: EmbeddingRowsUnit(shape, context, (start, stop)),
        functools.partial(SummedRowsUnit, shape),
    )
    parts = {"attn": shape.attention_parts, "mlp": shape.ffn_size}
    kinds = ((name, name.rpartition(".")[2]) for name in shape.unit_names())
    return [
        UnitSpec(
            name,
            functools.partial(builders[kind], shape),
            tied=tied if kind == "head" else {},
            parts=parts.get(kind, 1),
            rows=rows if kind == "embedding" else None,
            packs=True,
        )
        for name, kind in kinds
    ]


class EmbeddingUnit(nn.Module):
    """() -> (x,), from `microbatch.tokens`."""

    def __init__(self, shape: LlamaShape, context: BuildContext) -> None:
        super().__init__()
        self.tokens = VocabParallelEmbedding(
            shape.vocab_size,
            shape.hidden_size,
            context.tp,
            sequence_parallel=context.sequence_parallel,
            init=_init(context, "tokens"),
            device=context.device,
            dtype=context.dtype,
        )

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return (self.tokens(microbatch.tokens),)


class EmbeddingRowsUnit(nn.Module):
    """() -> (part of x,): rows that lie here, (B, S, H), of `microbatch.tokens`. Weights are the whole embedding's."""

    def __init__(self, shape: LlamaShape, context: BuildContext, rows: tuple[int, int]) -> None:
        super().__init__()
        self.tokens = EmbeddingRows(
            shape.vocab_size,
            shape.hidden_size,
            context.tp,
            rows=rows,
            init=_init(context, "tokens"),
            device=context.device,
            dtype=context.dtype,
        )

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return (self.tokens(microbatch.tokens),)

    def share_rows(self, weight: nn.Parameter, spec: ShardSpec, first: int) -> None:
        """Looks up in the head's weight."""
        self.tokens.share_rows(weight, spec, first)


class SummedRowsUnit(nn.Module):
    """(sum of all parts of x,) -> (x,)."""

    def __init__(self, shape: LlamaShape, context: BuildContext) -> None:
        super().__init__()
        self.hidden_size = shape.hidden_size
        self.dtype = context.dtype
        self.sum = SummedRows(context.tp, sequence_parallel=context.sequence_parallel)

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return (self.sum(carry[0]),)

    def zeros(self, tokens_BS: Tensor) -> Tensor:
        """(B, S, H) of a rank without rows."""
        return torch.zeros(*tokens_BS.shape, self.hidden_size, dtype=self.dtype, device=tokens_BS.device)


class AttentionUnit(nn.Module):
    """(x,) -> (x + attention,), or a piece of it. Each rank has num_heads/T query heads and their key/value heads.

    With fewer key/value heads than ranks, T/num_kv_heads neighbouring ranks hold the same one, and there are no pieces.

    Raises:
        PlanError: the heads cannot be split over the ranks.
    """

    def __init__(self, shape: LlamaShape, context: BuildContext) -> None:
        super().__init__()
        tp = context.tp.size
        _check_heads(shape, tp)
        self.piece = context.piece
        self.recompute = KEEP
        copies = max(1, tp // shape.num_kv_heads)
        self.compiled = context.compiled
        self.head_dim = shape.head_dim
        self.rope_theta, self.rope_scaling = shape.rope_theta, shape.rope_scaling
        self.norm = _norm(shape, context) if _holds_norm(context) else None
        self.qkv = ColumnParallelLinear(
            shape.hidden_size,
            (shape.q_size, shape.kv_size, shape.kv_size),
            context.tp,
            bias=shape.qkv_bias,
            replicas=(1, copies, copies),
            sequence_parallel=context.sequence_parallel,
            piece=context.piece,
            init=_init(context, "qkv"),
            device=context.device,
            dtype=context.dtype,
        )
        self.num_q, self.num_kv, _ = (size // shape.head_dim for size in self.qkv.local_sizes)
        self.q_norm = _head_norm(shape, context) if shape.qk_norm else None
        self.k_norm = _head_norm(shape, context) if shape.qk_norm else None
        self.output = _projection(shape.q_size, shape, context, "output")
        self.cache: KvCache | None = None

    def make_cache(self, num_slots: int, capacity: int) -> Tensor:
        """Room for so many sequences of so many tokens each, instead of what there was; as one tensor."""
        weight = self.qkv.weight
        self.cache = KvCache(num_slots, self.num_kv, capacity, self.head_dim, device=weight.device, dtype=weight.dtype)
        return self.cache.both

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        if microbatch.cached is None:
            mix = functools.partial(self._attend, documents=microbatch.documents)
        else:
            mix = functools.partial(self._attend_cached, rows=microbatch.cached)
        return residual_sum(carry, self.norm, self.qkv, mix, self.output, self.piece, self.recompute)

    def _attend(self, qkv: Tensor, documents: Documents | None) -> Tensor:
        if self.q_norm is not None and self.k_norm is not None:
            qkv = self._normed(qkv, self.q_norm, self.k_norm)
        positions = None if documents is None else documents.positions
        q, k, v = rotated_heads(
            qkv,
            self.num_q,
            self.num_kv,
            self.head_dim,
            self.rope_theta,
            self.rope_scaling,
            positions,
            compiled=self.compiled,
        )
        return causal_attention(q, k, v, documents)

    def _attend_cached(self, qkv: Tensor, rows: CachedRows) -> Tensor:
        assert self.cache is not None, "rows of an item, but no cache was made"
        if self.q_norm is not None and self.k_norm is not None:
            qkv = self._normed(qkv, self.q_norm, self.k_norm)
        heads_NhD = qkv.view(qkv.shape[1], -1, self.head_dim)
        turned = self.num_q + self.num_kv
        cos, sin = rows.once(("rotation", self.head_dim, self.rope_theta), lambda: self._tables(rows, qkv.dtype))
        q, k = rotated(heads_NhD[:, :turned], cos, sin).split_with_sizes([self.num_q, self.num_kv], dim=1)
        return cached_attention(q, k, heads_NhD[:, turned:], self.cache, rows).unsqueeze(0)

    def _tables(self, rows: CachedRows, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of every token's position, each (N, 1, D/2)."""
        assert self.cache is not None
        cos, sin = rotary_tables(
            self.cache.capacity, self.head_dim, self.rope_theta, rows.device, dtype, self.rope_scaling
        )
        return cos[rows.positions], sin[rows.positions]

    def _normed(self, qkv: Tensor, q_norm: RMSNorm, k_norm: RMSNorm) -> Tensor:
        heads_BShD = qkv.view(*qkv.shape[:2], -1, self.head_dim)
        q, k, v = heads_BShD.split_with_sizes([self.num_q, self.num_kv, self.num_kv], dim=2)
        return torch.cat([q_norm(q), k_norm(k), v], dim=2).flatten(2)


class MlpUnit(nn.Module):
    """(x,) -> (x + gated MLP,), or a piece of it."""

    def __init__(self, shape: LlamaShape, context: BuildContext) -> None:
        super().__init__()
        self.piece = context.piece
        self.recompute = KEEP
        self.mix = compiled_swiglu if context.compiled else swiglu
        self.norm = _norm(shape, context) if _holds_norm(context) else None
        self.gate_up = ColumnParallelLinear(
            shape.hidden_size,
            (shape.ffn_size, shape.ffn_size),
            context.tp,
            sequence_parallel=context.sequence_parallel,
            piece=context.piece,
            init=_init(context, "gate_up"),
            device=context.device,
            dtype=context.dtype,
        )
        self.down = _projection(shape.ffn_size, shape, context, "down")

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return residual_sum(carry, self.norm, self.gate_up, self.mix, self.down, self.piece, self.recompute)


class HeadUnit(nn.Module):
    """(x,) -> (sum of token losses,), a float32 scalar equal on all tensor-parallel ranks, or (local logits,).

    A tied weight is drawn as the embedding's, so both copies start equal wherever they are.
    """

    def __init__(self, shape: LlamaShape, context: BuildContext) -> None:
        super().__init__()
        self.vocab_size = shape.vocab_size
        self.tied = shape.tie_embeddings
        init = _init(context, "output")
        if shape.tie_embeddings:
            init = _init(replace(context, unit="embedding"), "tokens")
        self.norm = _norm(shape, context)
        self.output = ColumnParallelLinear(
            shape.hidden_size,
            shape.vocab_size,
            context.tp,
            padded=True,
            sequence_parallel=context.sequence_parallel,
            init=init,
            device=context.device,
            dtype=context.dtype,
        )

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        x = carry[0]
        if microbatch.cached is not None and microbatch.cached.last is not None:
            x = x.index_select(1, microbatch.cached.last)
        logits = self.output(self.norm(x))
        if microbatch.targets is None:
            return (logits,)
        targets, without = microbatch.targets, None
        if microbatch.documents is not None:
            without = targets == NO_TARGET
            targets = targets.masked_fill(without, 0)
        losses_BS = vocab_parallel_cross_entropy(
            logits, targets, self.vocab_size, self.output.axis, overwrite_logits=True
        )
        if without is not None:
            losses_BS = losses_BS.masked_fill(without, 0)
        return (losses_BS.sum(),)


def _check_heads(shape: LlamaShape, tp: int) -> None:
    if shape.num_heads % tp:
        raise PlanError(
            f"{shape.num_heads} attention heads cannot be split over tp_degree = {tp}; "
            f"choose a tp_degree that divides {shape.num_heads}"
        )
    if shape.num_heads % shape.num_kv_heads:
        raise PlanError(
            f"{shape.num_heads} query heads cannot share {shape.num_kv_heads} key/value heads evenly; "
            f"choose num_kv_heads that divides {shape.num_heads}"
        )
    if max(shape.num_kv_heads, tp) % min(shape.num_kv_heads, tp):
        raise PlanError(
            f"{shape.num_kv_heads} key/value heads can be neither split over nor shared by tp_degree = {tp} ranks; "
            f"choose a tp_degree that divides {shape.num_kv_heads} or is a multiple of it"
        )
    if shape.head_dim % 2:
        raise PlanError(f"head_dim = {shape.head_dim} is odd; rotary positions turn pairs, so make it even")


def _init(context: BuildContext, layer: str, std: float = STD) -> Init:
    return Init(seed=context.seed, unit=context.unit, layer=layer, std=std if context.draws else 0.0)


def _holds_norm(context: BuildContext) -> bool:
    """From its second piece on, a unit is handed what the first one has normed."""
    return context.piece is None or context.piece.is_first


def _norm(shape: LlamaShape, context: BuildContext) -> RMSNorm:
    return RMSNorm(
        shape.hidden_size,
        shape.norm_eps,
        partial=context.sequence_parallel,
        compiled=context.compiled,
        device=context.device,
        dtype=context.dtype,
    )


def _head_norm(shape: LlamaShape, context: BuildContext) -> RMSNorm:
    """Of every head on this rank, with one weight for all heads of the model."""
    return RMSNorm(
        shape.head_dim,
        shape.norm_eps,
        partial=context.tp.size > 1,
        compiled=context.compiled,
        device=context.device,
        dtype=context.dtype,
    )


def _projection(in_features: int, shape: LlamaShape, context: BuildContext, layer: str) -> RowParallelLinear:
    return RowParallelLinear(
        in_features,
        shape.hidden_size,
        context.tp,
        sequence_parallel=context.sequence_parallel,
        piece=context.piece,
        init=_init(context, layer, STD / math.sqrt(2 * shape.num_layers)),
        device=context.device,
        dtype=context.dtype,
    )
