"""Answers equal transformers' own, token for token and in their logits, on every mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.inference.served import Case, alone, expected, one_thread, run_case
from tests.models.hugging_face_models import (
    LLAMA,
    LLAMA_3_1,
    LLAMA_FOUR,
    LLAMA_ONE_HEAD,
    MISTRAL,
    QWEN2,
    QWEN2_FOUR,
    QWEN3,
    QWEN3_TIED,
    save_models,
)
from tests.ranks import run_ranks

MODELS = (LLAMA, LLAMA_ONE_HEAD, LLAMA_3_1, QWEN2, QWEN3, QWEN3_TIED, MISTRAL, LLAMA_FOUR, QWEN2_FOUR)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with one_thread():
        root = save_models(tmp_path_factory.mktemp("models"))
        for name in MODELS:
            torch.save(expected(root / name), root / f"{name}.answers.pt")
    return root


def run_cases(rank: int, root: Path, cases: Sequence[Case]) -> None:
    for case in cases:
        run_case(case, root)


def test_one_rank(models: Path) -> None:
    with alone():
        run_cases(0, models, [Case(name, 1, 1, chunk) for name in MODELS for chunk in (None, 3)])


@pytest.mark.ranks
def test_two_tensor_ranks_and_two_stages(models: Path) -> None:
    cases = [
        Case(LLAMA, 2, 1),
        Case(LLAMA_ONE_HEAD, 2, 1, 3),
        Case(QWEN3, 2, 1, 4),
        Case(LLAMA, 1, 2, items_in_flight=1),
        Case(QWEN2, 1, 2, 3),
        Case(QWEN3_TIED, 1, 2, slots=2),  # one microbatch
        Case(MISTRAL, 1, 2, 5, slots=6, microbatch_size=1, cuts=["embedding..0.attn", "0.mlp..head"]),
    ]
    run_ranks(2, run_cases, models, cases)


@pytest.mark.ranks
def test_two_tensor_ranks_by_three_stages(models: Path) -> None:
    pieces = ["embedding..0.attn[:2]", "0.attn[2:]..0.mlp[:10]", "0.mlp[10:]..head"]
    cases = [
        Case(LLAMA_3_1, 2, 3, 3, slots=8),
        Case(QWEN2, 2, 3),
        Case(LLAMA_FOUR, 2, 3, 4, slots=5, microbatch_size=1, cuts=pieces),
        Case(QWEN2_FOUR, 2, 3, slots=3, microbatch_size=3, cuts=pieces),
    ]
    run_ranks(6, run_cases, models, cases)


@pytest.mark.ranks
def test_eight_stages(models: Path) -> None:
    names = ["embedding", "0.attn[:1]", "0.attn[1:]", "0.mlp", "1.attn[:1]", "1.attn[1:]", "1.mlp", "head"]
    run_ranks(8, run_cases, models, [Case(LLAMA, 1, 8, 3, cuts=[f"{name}..{name}" for name in names])])


@pytest.mark.ranks
def test_four_stages_and_more_tensor_ranks_than_key_heads(models: Path) -> None:
    cases = [
        Case(QWEN2, 1, 4, 3),
        Case(LLAMA, 1, 4, slots=8, items_in_flight=6),
        Case(LLAMA, 4, 1, 1),  # prompts token by token
    ]
    run_ranks(4, run_cases, models, cases)
