"""Cuts inside units: the pieces train exactly as one process does, with the whole unit's weights and collectives."""

from __future__ import annotations

from typing import Any

import pytest

from hybrid_runtime.schedule.choose import AUTO
from tests.parity import assert_same, deployment, one_process, this_rank
from tests.ranks import run_ranks

TWO = ["embedding..1.mlp[:20]", "1.mlp[20:]..head"]
THREE = ["embedding..1.mlp[:10]", "1.mlp[10:30]", "1.mlp[30:]..head"]  # a stage that is nothing but a middle piece
V = ["embedding..0.attn[:2]", "0.attn[2:]..1.mlp[:6]", "1.mlp[6:]..2.attn[:2]", "2.attn[2:]..head"]
V_THREE = ["embedding..0.mlp[:16]", "0.mlp[16:20]", "0.mlp[20:]..2.attn[:2]", "2.attn[2:]..head"]  # both on one rank
V_ALONE = ["embedding..1.attn", "1.mlp[:20]", "1.mlp[20:]", "2.attn..head"]  # du passes straight through


def compare(rank: int, tp: int, cases: list[tuple[str, list[str]]]) -> None:
    """All cases of one mesh in one world; tied embeddings and sequence parallelism take turns."""
    models: list[dict[str, Any]] = [
        {"num_kv_heads": 4, "tie_embeddings": tied, "qkv_bias": tied} for tied in (False, True)
    ]
    oracles = [one_process(deployment(model=dict(model))) for model in models]
    for number, (schedule, cuts) in enumerate(cases):
        stages_per_rank = 2 if len(cuts) == 4 else 1
        for tied in (False, True):
            parallel = {
                "tp_degree": tp,
                "pp_degree": len(cuts) // stages_per_rank,
                "sequence_parallel": tp > 1 and (number + tied) % 2 == 0,
            }
            pipeline = {"schedule": schedule, "cuts": cuts}
            settings = deployment(model=dict(models[tied]), parallel=parallel, pipeline=pipeline)
            plan, _, run = this_rank(settings)
            assert any("[" in name for stage in plan.stages for name in stage.units)
            assert_same(run, oracles[tied], tied=("head.output.weight",))


@pytest.mark.ranks
@pytest.mark.parametrize("tp", [1, 2])
def test_two_ranks_of_pieces_equal_one_process(tp: int) -> None:
    cases = [("1f1b", TWO), ("zb_h1", TWO), ("zb_v", V), ("zb_v", V_THREE), (AUTO, V), ("zb_v", V_ALONE)]
    run_ranks(2 * tp, compare, tp, cases, timeout_s=240)


@pytest.mark.ranks
def test_middle_pieces_equal_one_process() -> None:
    run_ranks(3, compare, 1, [("1f1b", THREE), ("zb_h1", THREE)], timeout_s=240)
