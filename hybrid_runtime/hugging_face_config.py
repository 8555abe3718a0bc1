"""A Hugging Face `config.json`, read into a shape and written from one; no tensors.

    model_type   biases on q, k, v   norms of q and k heads
    llama        no                  no
    mistral      no                  no                         without a sliding window the same mathematics
    qwen2        yes                 no
    qwen3        no                  yes

What is written is read alike by transformers 4.50 and later and by 5.x, which have different words for two things:
`torch_dtype` became `dtype`, and `rope_theta` with `rope_scaling` became `rope_parameters`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_runtime.errors import UsageError
from hybrid_runtime.shapes import MAX_LAYERS, LlamaShape, RopeScaling

CONFIG = "config.json"
_MAX_SIZE = 10**9
_FAMILIES = {  # model_type -> (biases on q, k and v; norms of q and k heads)
    "llama": (False, False),
    "mistral": (False, False),
    "qwen2": (True, False),
    "qwen3": (False, True),
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_PLAIN: Mapping[str, Mapping[str, Any]] = {  # what a family's own defaults might turn on
    "llama": {"attention_bias": False, "mlp_bias": False},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False, "attention_bias": False},
}
_UNSAID: Mapping[str, Mapping[str, Any]] = {"mistral": {"sliding_window": 4096}}  # what transformers takes then
_QWEN3_HEAD_DIM = 128  # what transformers takes where a Qwen3 file gives none


def read_config(path: Path) -> dict[str, Any]:
    """The content of a `config.json` (the file, or a folder that holds it).

    Raises:
        UsageError: the file is missing or no JSON table.
    """
    file = path / CONFIG if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(f"{file}: cannot be read ({problem.strerror}); name a config.json or its folder") from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{file}: is not JSON ({problem}); download the file again") from None
    if not isinstance(config, dict):
        raise UsageError(f"{file}: holds no table, so its model_type is not known; download the file again")
    return config


def shape_from_hugging_face(path: Path) -> LlamaShape:
    """Reads a Hugging Face `config.json` (the file, or a folder that holds it).

    Sizes that are left out are what transformers takes for them.

    Raises:
        UsageError: the file is missing, not JSON, lacks a size, or describes a model that is not of the Llama family.
    """
    config = read_config(path)
    file = path / CONFIG if path.is_dir() else path
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise UsageError(f"{file}: model_type {kind!r} is not supported; supported are {', '.join(_FAMILIES)}")
    _refuse_other_models(file, config)
    qkv_bias, qk_norm = _FAMILIES[kind]
    heads, hidden = _size(file, config, "num_attention_heads"), _size(file, config, "hidden_size")
    return LlamaShape(
        vocab_size=_size(file, config, "vocab_size"),
        hidden_size=hidden,
        num_layers=_size(file, config, "num_hidden_layers", limit=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=_kv_heads(file, config, heads),
        ffn_size=_size(file, config, "intermediate_size"),
        head_dim=_size(file, config, "head_dim", _QWEN3_HEAD_DIM if kind == "qwen3" else hidden // heads),
        rope_theta=_number(file, config, "rope_theta", _number(file, _rope(config), "rope_theta", 10_000.0)),
        rope_scaling=_rope_scaling(file, config),
        norm_eps=_number(file, config, "rms_norm_eps", 1e-6),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        tie_embeddings=config.get("tie_word_embeddings") is True,
    )


def config_of(
    shape: LlamaShape, *, dtype: str, max_position_embeddings: int, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of the `config.json` of an exported model.

    Args:
        dtype: of the weights in the folder, in torch's spelling ("float32", "bfloat16", "float16").
        max_position_embeddings: the longest sequence to write down where the source says none.
        source: the config that the model came from; whatever the shape does not say is kept.

    Raises:
        UsageError: no family of transformers has both biases on q, k, v and norms of their heads.
    """
    kind = _family(shape, source)
    kept = dict(source) if source is not None and source.get("model_type") == kind else {}
    if kept.get("num_hidden_layers") != shape.num_layers:
        kept.pop("layer_types", None)  # one entry per layer, "full_attention" all
    fresh: dict[str, Any] = {
        "max_position_embeddings": max_position_embeddings,
        "hidden_act": "silu",
        "bos_token_id": None,
        "eos_token_id": None,
        **_PLAIN[kind],
    }
    return fresh | kept | _sizes(shape) | _rope_words(shape) | _dtype_words(kind, dtype)


def _family(shape: LlamaShape, source: Mapping[str, Any] | None) -> str:
    """The source's own where it fits, else the first that does."""
    wanted = (shape.qkv_bias, shape.qk_norm)
    preferred = None if source is None else source.get("model_type")
    fitting = [kind for kind, features in _FAMILIES.items() if features == wanted]
    if not fitting:
        raise UsageError(
            "a model with qkv_bias and qk_norm cannot be exported: no model of transformers has both; drop one of them"
        )
    return preferred if preferred in fitting else fitting[0]


def _sizes(shape: LlamaShape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "intermediate_size": shape.ffn_size,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tie_embeddings,
    }


def _rope_words(shape: LlamaShape) -> dict[str, Any]:
    """Both spellings."""
    scaling = shape.rope_scaling
    words: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        words = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    return {
        "rope_theta": shape.rope_theta,
        "rope_scaling": None if scaling is None else words,
        "rope_parameters": words | {"rope_theta": shape.rope_theta},
    }


def dtype_of_config(config: Mapping[str, Any]) -> str | None:
    """Of the weights in a folder, by its `config.json`, in torch's spelling; None where it does not say."""
    found = config.get("dtype", config.get("torch_dtype"))
    return found if isinstance(found, str) else None


def _dtype_words(kind: str, dtype: str) -> dict[str, Any]:
    return {"model_type": kind, "architectures": [_ARCHITECTURES[kind]], "torch_dtype": dtype, "dtype": dtype}


def _refuse_other_models(file: Path, config: Mapping[str, Any]) -> None:
    """Features that change the mathematics are refused: a model that runs and is a different one helps nobody."""
    config = {**_UNSAID.get(config["model_type"], {}), **config}
    sliding = config.get("use_sliding_window", config["model_type"] == "mistral") and config.get("sliding_window")
    layers = config.get("layer_types") or []
    unsupported = {
        "rope_scaling": _rope_type(config.get("rope_scaling")) not in ("default", "llama3"),
        "rope_parameters": _rope_type(_rope(config)) not in ("default", "llama3") or _is_partial(_rope(config)),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1) != 1,
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "sliding_window": bool(sliding),
        "layer_types": not isinstance(layers, list) or any(layer != "full_attention" for layer in layers),
        "quantization_config": bool(config.get("quantization_config")),
    }
    for feature, found in unsupported.items():
        if found:
            raise UsageError(
                f"{file}: {feature} = {config.get(feature)!r:.200} is not supported; use a model without it"
            )


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("rope_parameters")
    return found if isinstance(found, dict) else {}


def _is_partial(rope: Mapping[str, Any]) -> bool:
    """Positions for a part of each head only, or others in some layers than in the rest."""
    return rope.get("partial_rotary_factor", 1) != 1 or any(isinstance(value, dict) for value in rope.values())


def _rope_type(scaling: object) -> object:
    if not isinstance(scaling, dict):
        return "default" if scaling is None else scaling
    return scaling.get("rope_type", scaling.get("type", "default"))


def _rope_scaling(file: Path, config: Mapping[str, Any]) -> RopeScaling | None:
    """Llama 3.1's; the older spelling goes first, as in transformers."""
    words = next((w for w in (config.get("rope_scaling"), _rope(config)) if w and _rope_type(w) == "llama3"), None)
    if words is None:
        return None
    scaling = RopeScaling(
        factor=_number(file, words, "factor"),
        low_freq_factor=_number(file, words, "low_freq_factor"),
        high_freq_factor=_number(file, words, "high_freq_factor"),
        original_length=_size(file, words, "original_max_position_embeddings", config.get("max_position_embeddings")),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UsageError(
            f"{file}: high_freq_factor = {scaling.high_freq_factor:g} must be above low_freq_factor = "
            f"{scaling.low_freq_factor:g}; mend the file"
        )
    return scaling


def _kv_heads(file: Path, config: Mapping[str, Any], heads: int) -> int:
    """As many as heads where the file says null; where it says nothing, transformers has another number per family."""
    if config["model_type"] != "llama" and "num_key_value_heads" not in config:
        raise UsageError(f"{file}: num_key_value_heads is missing; add it, or null for as many as attention heads")
    return _size(file, config, "num_key_value_heads", heads)


def _size(file: Path, config: Mapping[str, Any], name: str, default: int | None = None, limit: int = _MAX_SIZE) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise UsageError(f"{file}: {name} = {value!r:.40} must be a whole number from 1 to {limit}; mend the file")
    return value


def _number(file: Path, config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _MAX_SIZE:
        raise UsageError(f"{file}: {name} = {value!r:.40} must be a number above 0; mend the file")
    return float(value)
