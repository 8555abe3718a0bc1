"""Tiny models of every family with random biases and norms, and the logits that transformers computes of them.

transformers is imported where it is used: ranks that tests start need only what stands here, and it takes seconds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 51,  # two ranks pad it
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
TOKENS = torch.arange(2 * 16).view(2, 16) * 7 % 51
LLAMA, LLAMA_ONE_HEAD, LLAMA_3_1, MISTRAL = "llama", "llama_one_kv_head", "llama_3_1", "mistral"
QWEN2, QWEN3, QWEN3_TIED = "qwen2_tied", "qwen3", "qwen3_tied"
LLAMA_FOUR, QWEN2_FOUR = "llama_four_kv_heads", "qwen2_four_kv_heads"  # to be cut between them, on two ranks too
FOUR = {"num_key_value_heads": 4, "num_hidden_layers": 1}
ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def transformers_or_skip() -> Any:
    """The package; where it is not installed, the test is skipped."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers", reason="the optional package transformers is not installed")


def configs() -> dict[str, Any]:
    """By name."""
    transformers = transformers_or_skip()
    return {
        LLAMA: transformers.LlamaConfig(**SIZES, rope_theta=5000.0),
        LLAMA_ONE_HEAD: transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 1}, rms_norm_eps=1e-3),
        LLAMA_3_1: transformers.LlamaConfig(**SIZES, rope_parameters=dict(ROPE)),
        QWEN2: transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
        QWEN3: transformers.Qwen3Config(**SIZES, head_dim=8, rope_theta=3000.0),
        QWEN3_TIED: transformers.Qwen3Config(
            **SIZES | {"num_key_value_heads": 1}, head_dim=6, tie_word_embeddings=True
        ),
        LLAMA_FOUR: transformers.LlamaConfig(**SIZES | FOUR),
        QWEN2_FOUR: transformers.Qwen2Config(**SIZES | FOUR),
        MISTRAL: transformers.MistralConfig(**SIZES, sliding_window=None),
    }


NAMES = (LLAMA, LLAMA_ONE_HEAD, LLAMA_3_1, QWEN2, QWEN3, QWEN3_TIED, MISTRAL)


def save_models(root: Path) -> Path:
    """A folder `root/NAME` per model, its logits in `root/NAME.pt`; those of Qwen have several files and an index."""
    for name, config in configs().items():
        torch.manual_seed(1)
        model = transformers_or_skip().AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
            torch.save(model.eval()(TOKENS).logits, root / f"{name}.pt")
        several = name.startswith("qwen")
        model.save_pretrained(root / name, max_shard_size="20KB" if several else "1GB")
        assert (root / name / "model.safetensors.index.json").exists() == several
        (root / name / "tokenizer.json").write_text('{"of": "' + name + '"}')
    return root


def logits_of_transformers(folder: Path) -> Tensor:
    """(B, S, V) of TOKENS."""
    return logits_of_tokens(folder, TOKENS)


def logits_of_tokens(folder: Path, tokens: Tensor) -> Tensor:
    """(B, S, V) of tokens (B, S)."""
    with torch.no_grad():
        model = transformers_or_skip().AutoModelForCausalLM.from_pretrained(folder)
        logits: Tensor = model.eval()(tokens).logits
    return logits


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by name, read by the safetensors library."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
