"""With the optimizer's state sharded over replicas (ZeRO-1), every mesh still trains exactly as one process does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parity import assert_same, deployment, one_process, this_rank
from tests.ranks import run_ranks

# A tied weight with rows of it on every pipeline rank, a stage that ends inside a unit, two stages a rank in a V, key
# and value heads that both tensor ranks hold.
ROWS_IN_A_V: dict[str, Any] = {
    "schedule": "zb_v",
    "cuts": ["embedding..0.mlp", "1.attn..1.mlp[:24]", "1.mlp[24:]..2.attn", "2.mlp..head"],
    "embedding_rows": [20, 32],
}
OWNER, HEAD = "embedding.tokens.weight", "head.output.weight"
TIED = {"tie_embeddings": True, "qkv_bias": True, "vocab_size": 51, "num_kv_heads": 1}


def compare(rank: int, tp: int, pp: int, dp: int, variants: list[dict[str, Any]]) -> None:
    for variant in variants:
        parallel = {"tp_degree": tp, "pp_degree": pp, "dp_degree": dp, "shard_optimizer": True}
        parallel["sequence_parallel"] = variant.get("sequence_parallel", False)
        model, pipeline = dict(variant.get("model", {})), dict(variant.get("pipeline", {}))
        oracle = one_process(deployment(model=dict(model)))
        _, _, run = this_rank(deployment(model=model, parallel=parallel, pipeline=pipeline))
        for found in (run.gradients, run.parameters) if "embedding_rows" in pipeline else ():
            for rows in [name for name in found if name.startswith("embedding[")]:
                held = found[rows].any(1)
                assert torch.equal(found[rows][held], found[HEAD][held]), "copies stay equal, bit for bit"
                del found[rows]
            found[OWNER] = found[HEAD]
        assert_same(run, oracle, tied=(HEAD,))
        for name, expected in oracle.parameters.items():
            error = float((run.parameters[name] - expected).norm() / expected.norm())
            assert error <= 1e-5, f"{name}: relative error {error:.2e}"


@pytest.mark.ranks
def test_three_axes_equal_one_process() -> None:
    plain = {"sequence_parallel": True, "pipeline": {"cuts": "even"}}
    run_ranks(8, compare, 2, 2, 2, [plain, {"model": TIED, "pipeline": ROWS_IN_A_V}], timeout_s=240)
