"""The shape of a Llama-family model: sizes only, no tensors. Presets, and the unit names.

A model is a flat list of *units*; a pipeline stage is a slice of that list. For a model of two layers:

    embedding | 0.attn | 0.mlp | 1.attn | 1.mlp | head
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


class RopeScaling(NamedTuple):
    """Llama 3.1's rotary positions for longer sequences: slow rotations get slower by `factor`, fast ones stay.

    A rotation is slow if it turns at most `low_freq_factor` times in `original_length` positions, and fast if at least
    `high_freq_factor` times; between them the factor fades.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes of a Llama, Mistral, Qwen2 or Qwen3 decoder.

    Attributes:
        hidden_size: width H of the carry between units.
        ffn_size: intermediate width of the gated MLP.
        num_kv_heads: key/value heads; fewer than `num_heads` is grouped-query attention.
        head_dim: width of one head; usually hidden_size / num_heads.
        rope_scaling: Llama 3.1's; None for plain rotary positions.
        qkv_bias: Qwen2's biases on query, key and value.
        qk_norm: Qwen3's norms of every query and key head, with weights that all heads share.
        tie_embeddings: the head uses the embedding's weight.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_size: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def attention_parts(self) -> int:
        """Between how many parts attention may be cut: key/value heads, unless all heads share the weights of norms."""
        return 1 if self.qk_norm else self.num_kv_heads

    def unit_names(self) -> tuple[str, ...]:
        layers = [name for k in range(self.num_layers) for name in (f"{k}.attn", f"{k}.mlp")]
        return ("embedding", *layers, "head")


def _llama(vocab: int, hidden: int, layers: int, heads: int, kv: int, ffn: int, **more: Any) -> LlamaShape:
    return LlamaShape(
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv,
        ffn_size=ffn,
        head_dim=more.pop("head_dim", hidden // heads),
        **more,
    )


PRESETS: Mapping[str, LlamaShape] = {
    # name: vocabulary, hidden, layers, heads, kv heads, ffn
    "tiny": _llama(256, 96, 6, 6, 6, 256),
    "small": _llama(4096, 512, 6, 8, 8, 1408),
    "llama-160m": _llama(32_000, 768, 12, 12, 12, 2048),
    "tinyllama-1.1b": _llama(32_000, 2048, 22, 32, 4, 5632),
    "llama-2-7b": _llama(32_000, 4096, 32, 32, 32, 11_008),
    "llama-3-8b": _llama(128_256, 4096, 32, 32, 8, 14_336, rope_theta=500_000.0),
    "llama-3.1-8b": _llama(
        128_256, 4096, 32, 32, 8, 14_336, rope_theta=500_000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192)
    ),
    "llama-3-70b": _llama(128_256, 8192, 80, 64, 8, 28_672, rope_theta=500_000.0),
    "qwen2.5-0.5b": _llama(
        151_936, 896, 24, 14, 2, 4864, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True, tie_embeddings=True
    ),
    "qwen2.5-7b": _llama(152_064, 3584, 28, 28, 4, 18_944, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True),
    "qwen3-0.6b": _llama(
        151_936,
        1024,
        28,
        16,
        8,
        3072,
        head_dim=128,
        rope_theta=1e6,
        norm_eps=1e-6,
        qk_norm=True,
        tie_embeddings=True,
    ),
    "qwen3-8b": _llama(151_936, 4096, 36, 32, 8, 12_288, rope_theta=1e6, norm_eps=1e-6, qk_norm=True),
}

OVERRIDABLE = tuple(name for name in LlamaShape.__dataclass_fields__ if name != "rope_scaling")  # keys of [model]


def with_overrides(shape: LlamaShape, overrides: Mapping[str, Any]) -> LlamaShape:
    """The shape with some sizes replaced; head_dim follows hidden_size / num_heads unless it is given itself."""
    given = {name: value for name, value in overrides.items() if value is not None}
    if not given:
        return shape
    if "head_dim" not in given and ("hidden_size" in given or "num_heads" in given):
        given["head_dim"] = given.get("hidden_size", shape.hidden_size) // given.get("num_heads", shape.num_heads)
    if "num_heads" in given and "num_kv_heads" not in given and shape.num_kv_heads == shape.num_heads:
        given["num_kv_heads"] = given["num_heads"]
    return replace(shape, **given)


MAX_LAYERS = 1000  # a bound for typing errors; the largest published Llama has 126
