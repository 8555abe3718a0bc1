"""Hugging Face configs: only what is computed alike is read, and what is written says the same again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.errors import UsageError
from hybrid_runtime.hugging_face_config import config_of, read_config, shape_from_hugging_face
from hybrid_runtime.shapes import MAX_LAYERS, PRESETS, LlamaShape

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "sliding_window": 32_768,
    "use_sliding_window": False,
}
SCALED: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(folder: Path, config: object) -> LlamaShape:
    (folder / "config.json").write_text(json.dumps(config))
    return shape_from_hugging_face(folder)


def test_hugging_face_configs_of_two_presets(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA) == PRESETS["llama-3-8b"]
    assert read(tmp_path, QWEN) == PRESETS["qwen2.5-0.5b"]
    assert shape_from_hugging_face(tmp_path / "config.json") == PRESETS["qwen2.5-0.5b"]


def test_hugging_face_defaults_and_newer_spelling(tmp_path: Path) -> None:
    config = {
        key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "rope_theta", "rms_norm_eps")
    }
    shape = read(
        tmp_path, config | {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000}, "head_dim": None}
    )
    assert (shape.num_kv_heads, shape.rope_theta, shape.norm_eps, shape.head_dim) == (32, 20_000.0, 1e-6, 128)
    assert read(tmp_path, config | {"head_dim": 64}).q_size == 2048


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported are llama, mistral, qwen2, qwen3"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor = None must be a number above 0"),
        ({"rope_scaling": SCALED | {"high_freq_factor": 1.0}}, "high_freq_factor = 1 must be above low_freq_factor"),
        ({"rope_scaling": SCALED | {"original_max_position_embeddings": 0.5}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = {'type': 'linear', 'factor': 2.0}"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": 3}, "layer_types"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"model_type": "qwen3", "num_key_value_heads": 8, "attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters = {'full_attention'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window"),
        ({"model_type": "mistral"}, "sliding_window = 4096 is not supported"),
        ({"vocab_size": None}, "vocab_size = None must be a whole number"),
        ({"hidden_size": "4096"}, "hidden_size = '4096'"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"num_hidden_layers": MAX_LAYERS + 1}, f"from 1 to {MAX_LAYERS}"),
        ({"intermediate_size": -1}, "intermediate_size"),
        ({"rope_theta": "many"}, "rope_theta = 'many' must be a number above 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ],
)
def test_other_models_and_damaged_configs_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(tmp_path, LLAMA | change)
    assert words in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_mistral_without_a_window_and_plain_rope_scaling_are_accepted(tmp_path: Path) -> None:
    mistral = {"model_type": "mistral", "sliding_window": None, "layer_types": ["full_attention"] * 32}
    assert read(tmp_path, LLAMA | mistral) == PRESETS["llama-3-8b"]
    assert read(tmp_path, LLAMA | {"rope_scaling": {"type": "default"}}) == PRESETS["llama-3-8b"]


def test_sizes_that_transformers_would_take_from_a_family_are_asked_for(tmp_path: Path) -> None:
    qwen3 = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"} | {"model_type": "qwen3"}
    with pytest.raises(UsageError, match="num_key_value_heads is missing; add it, or null"):
        read(tmp_path, qwen3)
    shape = read(tmp_path, qwen3 | {"num_key_value_heads": None, "hidden_size": 1024})
    assert (shape.num_kv_heads, shape.head_dim, shape.qk_norm, shape.qkv_bias) == (32, 128, True, False)


def test_positions_of_llama_3_1_in_both_spellings(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA | {"rope_scaling": SCALED}) == PRESETS["llama-3.1-8b"]
    plain = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    assert read(tmp_path, plain | {"rope_parameters": SCALED | {"rope_theta": 5e5}}) == PRESETS["llama-3.1-8b"]
    unsaid = {key: value for key, value in SCALED.items() if key != "original_max_position_embeddings"}
    shape = read(tmp_path, LLAMA | {"rope_scaling": unsaid, "max_position_embeddings": 8192})
    assert shape == PRESETS["llama-3.1-8b"]


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_read_as_the_same_shape(tmp_path: Path, name: str) -> None:
    words = config_of(PRESETS[name], dtype="bfloat16", max_position_embeddings=128)
    assert read(tmp_path, words) == PRESETS[name]
    assert (words["torch_dtype"], words["dtype"], words["max_position_embeddings"]) == ("bfloat16", "bfloat16", 128)
    only_4 = {key: value for key, value in words.items() if key not in ("rope_parameters", "dtype")}
    only_5 = {key: value for key, value in words.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")}
    assert read(tmp_path, only_4) == read(tmp_path, only_5) == PRESETS[name]


def test_what_the_source_says_beside_the_shape_is_kept(tmp_path: Path) -> None:
    source = LLAMA | {"model_type": "mistral", "sliding_window": None, "bos_token_id": 5, "layer_types": []}
    (tmp_path / "config.json").write_text(json.dumps(source))
    shape = replace(shape_from_hugging_face(tmp_path), num_layers=3)
    words = config_of(shape, dtype="float32", max_position_embeddings=9, source=read_config(tmp_path))
    assert (words["model_type"], words["bos_token_id"], words["num_hidden_layers"]) == ("mistral", 5, 3)
    assert words["architectures"] == ["MistralForCausalLM"]
    assert "layer_types" not in words
    biased = config_of(replace(shape, qkv_bias=True), dtype="float32", max_position_embeddings=9, source=source)
    assert (biased["model_type"], biased["bos_token_id"]) == ("qwen2", None)
    with pytest.raises(UsageError, match="no model of transformers has both"):
        config_of(replace(shape, qkv_bias=True, qk_norm=True), dtype="float32", max_position_embeddings=9)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"\xff", b"[" * 100_000, b'{"model_type": {}}', b"\x00", b"1" * 5000]
)
def test_bytes_that_are_no_config_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError):
        shape_from_hugging_face(tmp_path)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        shape_from_hugging_face(tmp_path)
    with pytest.raises(UsageError):
        shape_from_hugging_face(Path("a\0b"))
