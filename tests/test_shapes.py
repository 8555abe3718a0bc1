"""Model sizes: presets and overrides."""

from __future__ import annotations

import pytest

from hybrid_runtime.shapes import PRESETS, with_overrides


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_sizes_that_agree(name: str) -> None:
    shape = PRESETS[name]
    assert shape.num_heads % shape.num_kv_heads == 0
    assert shape.head_dim * shape.num_heads == shape.q_size
    assert shape.q_size == shape.hidden_size or name == "qwen3-0.6b"
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
