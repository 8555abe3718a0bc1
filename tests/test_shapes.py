"""Model sizes: presets, overrides, and Hugging Face configs, of which only what is computed alike is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.errors import UsageError
from hybrid_runtime.shapes import MAX_LAYERS, PRESETS, LlamaShape, shape_from_hugging_face, with_overrides

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


def read(folder: Path, config: object) -> LlamaShape:
    (folder / "config.json").write_text(json.dumps(config))
    return shape_from_hugging_face(folder)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_sizes_that_agree(name: str) -> None:
    shape = PRESETS[name]
    assert shape.num_heads % shape.num_kv_heads == 0
    assert shape.head_dim * shape.num_heads == shape.q_size == shape.hidden_size
    assert shape.kv_size == shape.head_dim * shape.num_kv_heads


def test_unit_names() -> None:
    two_layers = with_overrides(PRESETS["tiny"], {"num_layers": 2})
    assert two_layers.unit_names() == ("embedding", "0.attn", "0.mlp", "1.attn", "1.mlp", "head")


def test_overrides_keep_what_follows_from_them() -> None:
    tiny = PRESETS["tiny"]
    assert with_overrides(tiny, {"num_layers": None}) is tiny
    wider = with_overrides(tiny, {"hidden_size": 256, "num_heads": 8})
    assert (wider.head_dim, wider.num_kv_heads) == (32, 8)  # tiny has as many key/value heads as heads
    assert with_overrides(tiny, {"num_heads": 8, "num_kv_heads": 2}).num_kv_heads == 2
    assert with_overrides(tiny, {"num_heads": 8, "head_dim": 10}).q_size == 80
    assert with_overrides(PRESETS["llama-3-8b"], {"num_heads": 16}).num_kv_heads == 8


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
    assert (shape.num_kv_heads, shape.rope_theta, shape.norm_eps, shape.head_dim) == (32, 20_000.0, 1e-5, 128)
    assert read(tmp_path, config | {"head_dim": 64}).q_size == 2048


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported are llama, mistral, qwen2"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window"),
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
    assert read(tmp_path, LLAMA | {"model_type": "mistral", "sliding_window": None}) == PRESETS["llama-3-8b"]
    assert read(tmp_path, LLAMA | {"rope_scaling": {"type": "default"}}) == PRESETS["llama-3-8b"]


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
