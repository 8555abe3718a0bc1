"""The shape of a Llama-family model: sizes only, no tensors. Presets, Hugging Face `config.json`, and the unit names.

A model is a flat list of *units*; a pipeline stage is a slice of that list. For a model of two layers:

    embedding | 0.attn | 0.mlp | 1.attn | 1.mlp | head
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybrid_runtime.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes of a Llama, Qwen2 or Mistral decoder.

    Attributes:
        hidden_size: width H of the carry between units.
        ffn_size: intermediate width of the gated MLP.
        num_kv_heads: key/value heads; fewer than `num_heads` is grouped-query attention.
        head_dim: width of one head; usually hidden_size / num_heads.
        qkv_bias: Qwen2's biases on query, key and value.
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
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    tie_embeddings: bool = False

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

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
    "llama-3-70b": _llama(128_256, 8192, 80, 64, 8, 28_672, rope_theta=500_000.0),
    "qwen2.5-0.5b": _llama(
        151_936, 896, 24, 14, 2, 4864, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True, tie_embeddings=True
    ),
    "qwen2.5-7b": _llama(152_064, 3584, 28, 28, 4, 18_944, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True),
}

OVERRIDABLE = tuple(name for name in LlamaShape.__dataclass_fields__)


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
_MAX_SIZE = 10**9
_SUPPORTED = {"llama": False, "mistral": False, "qwen2": True}  # model_type -> biases on q, k and v


def shape_from_hugging_face(path: Path) -> LlamaShape:
    """Reads a Hugging Face `config.json` (the file, or a folder that holds it).

    Raises:
        UsageError: the file is missing, not JSON, lacks a size, or describes a model that is not of the Llama family.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(f"{file}: cannot be read ({problem.strerror}); name a config.json or its folder") from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{file}: is not JSON ({problem}); download the file again") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in _SUPPORTED:
        raise UsageError(f"{file}: model_type {kind!r} is not supported; supported are {', '.join(_SUPPORTED)}")
    _refuse_other_models(file, config)
    heads = _size(file, config, "num_attention_heads")
    return _llama(
        _size(file, config, "vocab_size"),
        _size(file, config, "hidden_size"),
        _size(file, config, "num_hidden_layers", limit=MAX_LAYERS),
        heads,
        _size(file, config, "num_key_value_heads", heads),
        _size(file, config, "intermediate_size"),
        head_dim=_size(file, config, "head_dim", _size(file, config, "hidden_size") // heads),
        rope_theta=_number(file, config, "rope_theta", _number(file, _rope(config), "rope_theta", 10_000.0)),
        norm_eps=_number(file, config, "rms_norm_eps", 1e-5),
        qkv_bias=_SUPPORTED[kind],
        tie_embeddings=config.get("tie_word_embeddings") is True,
    )


def _refuse_other_models(file: Path, config: Mapping[str, Any]) -> None:
    """Features that change the mathematics are refused: a model that runs and is a different one helps nobody."""
    sliding = config.get("use_sliding_window", config["model_type"] == "mistral") and config.get("sliding_window")
    unsupported = {
        "rope_scaling": _rope_type(config.get("rope_scaling")) != "default",
        "rope_parameters": _rope_type(_rope(config)) != "default",
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "sliding_window": bool(sliding),
    }
    for feature, found in unsupported.items():
        if found:
            raise UsageError(f"{file}: {feature} = {config.get(feature)!r} is not supported; use a model without it")


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("rope_parameters")
    return found if isinstance(found, dict) else {}


def _rope_type(scaling: object) -> object:
    if not isinstance(scaling, dict):
        return "default" if scaling is None else scaling
    return scaling.get("rope_type", scaling.get("type", "default"))


def _size(file: Path, config: Mapping[str, Any], name: str, default: int | None = None, limit: int = _MAX_SIZE) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise UsageError(f"{file}: {name} = {value!r:.40} must be a whole number from 1 to {limit}; mend the file")
    return value


def _number(file: Path, config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _MAX_SIZE:
        raise UsageError(f"{file}: {name} = {value!r:.40} must be a number above 0; mend the file")
    return float(value)
