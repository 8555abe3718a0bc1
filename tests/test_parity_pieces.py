"""Cuts inside units: the pieces train exactly as one process does, with the whole unit's weights and collectives."""

from __future__ import annotations

from typing import Any

import pytest

from hybrid_runtime.schedule.choose import AUTO
from tests.parity import VOCABULARY, assert_same, deployment, one_process, this_rank
from tests.ranks import run_ranks

TWO = ["embedding..1.mlp[:20]", "1.mlp[20:]..head"]
THREE = ["embedding..1.mlp[:10]", "1.mlp[10:30]", "1.mlp[30:]..head"]  # a stage that is nothing but a middle piece
V = ["embedding..0.attn[:2]", "0.attn[2:]..1.mlp[:6]", "1.mlp[6:]..2.attn[:2]", "2.attn[2:]..head"]
V_THREE = ["embedding..0.mlp[:16]", "0.mlp[16:20]", "0.mlp[20:]..2.attn[:2]", "2.attn[2:]..head"]  # both on one rank
V_ALONE = ["embedding..1.attn", "1.mlp[:20]", "1.mlp[20:]", "2.attn..head"]  # du passes straight through


def compare(rank: int, tp: int, cases: list[tuple[str, list[str]]]) -> None:
    """All cases of one mesh in one world; what is computed again takes turns; with tensor parallelism, its variants and
    tied embeddings do, too."""
    models: list[dict[str, Any]] = [
        {"num_kv_heads": 4, "tie_embeddings": tied, "qkv_bias": tied} for tied in (False, True)
    ]
    oracles = [one_process(deployment(model=dict(model))) for model in models]
    for number, (schedule, cuts) in enumerate(cases):
        stages_per_rank = 2 if len(cuts) == 4 else 1
        for tied in (False, True) if tp == 1 else (number % 2 == 0,):
            parallel = {
                "tp_degree": tp,
                "pp_degree": len(cuts) // stages_per_rank,
                "sequence_parallel": tp > 1 and number < 2,
            }
            pipeline = {"schedule": schedule, "cuts": cuts, "recompute": ("full", "selective", "none")[number % 3]}
            settings = deployment(model=dict(models[tied]), parallel=parallel, pipeline=pipeline)
            plan, _, run = this_rank(settings)
            assert any("[" in name for stage in plan.stages for name in stage.units)
            assert_same(run, oracles[tied], tied=("head.output.weight",))


@pytest.mark.ranks
def test_pieces_on_two_ranks_equal_one_process() -> None:
    cases = [("1f1b", TWO), ("zb_v", V_THREE), ("zb_v", V_ALONE)]
    run_ranks(2, compare, 1, cases, timeout_s=240)


@pytest.mark.ranks
def test_pieces_on_two_by_two_ranks_equal_one_process() -> None:
    run_ranks(4, compare, 2, [("1f1b", TWO), ("zb_v", V), (AUTO, V_THREE)], timeout_s=240)


def compare_own(rank: int) -> None:
    """A user's plain modules, cut where they offer it, in three pieces."""
    model = {"units": "tests.own_pieces:units", "options": {"vocab_size": VOCABULARY, "width": 8}}
    cuts = ["embedding..0.mlp[:9]", "0.mlp[9:10]", "0.mlp[10:]..head"]
    settings = deployment(model=model, parallel={"pp_degree": 3}, pipeline={"cuts": cuts})
    _, _, run = this_rank(settings)
    assert_same(run, one_process(settings))


@pytest.mark.ranks
def test_own_pieces_equal_one_process() -> None:
    run_ranks(3, compare_own)


@pytest.mark.ranks
def test_middle_pieces_equal_one_process() -> None:
    run_ranks(3, compare, 1, [("zb_h1", THREE)], timeout_s=240)
