"""With the optimizer's state sharded over replicas (ZeRO-1), every mesh still trains exactly as one process does."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job_parts import Built, build
from hybrid_runtime.lone.group import Traffic
from hybrid_runtime.lone.maker import lone_groups
from hybrid_runtime.lone.rank import LoneRank, set_stage
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.planner.state_bytes import FLOAT32, MIXED
from hybrid_runtime.rehearsal import Calls
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


def replicated(dp: int, *, sharded: bool, **tables: Any) -> Deployment:
    return deployment(parallel={"dp_degree": dp, "shard_optimizer": sharded}, **tables)


def built_alone(settings: Deployment, rank: int) -> Built:
    """One replica, its optimizer's state made."""
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    cpu = torch.device("cpu")
    groups = lone_groups(plan.mesh, rank, [], device=cpu, dtype=torch.float32, traffic=Traffic())
    built = build(settings, plan, specs, groups)
    assert built.update is not None
    built.update.optimizer.prepare()
    return built


def optimizer_bytes(built: Built) -> tuple[int, int]:
    """What the byte ledger finds: the moments, and what counts updates."""
    assert built.update is not None
    counters = 4 * len(built.update.optimizer.state)
    return built.ledger.memory(watched=False).optimizer - counters, counters


@pytest.mark.parametrize("dp", [2, 8])
def test_the_optimizer_s_bytes_are_shared_exactly(dp: int) -> None:
    """All moments are somewhere, once; in halves, because every size of this model is a multiple of 32."""
    whole = built_alone(replicated(1, sharded=False), 0)
    parts = [built_alone(replicated(dp, sharded=True), rank) for rank in range(dp)]
    (moments, _), found = optimizer_bytes(whole), [optimizer_bytes(part)[0] for part in parts]
    parameters = sum(p.numel() for unit in whole.units.values() for p in unit.parameters())
    assert moments == sum(found) == FLOAT32.optimizer * parameters
    assert dp != 2 or found == [moments // 2] * 2
    assert max(found) - moments / dp < FLOAT32.optimizer * 16 * dp
    assert all(part.ledger.memory(watched=False).gradients - 4 * parameters < 4 * 16 * dp for part in parts)
    assert [optimizer_bytes(built_alone(replicated(dp, sharded=False), 0))] == [optimizer_bytes(whole)]


def test_master_copies_are_shared_too() -> None:
    """12 bytes for each of half the parameters: a master copy and two moments, all float32."""
    part = built_alone(replicated(2, sharded=True, model={"dtype": "bfloat16"}), 1)
    parameters = sum(p.numel() for unit in part.units.values() for p in unit.parameters())
    assert optimizer_bytes(part)[0] == MIXED.optimizer * parameters // 2
    held = part.ledger.memory(watched=False)
    assert (held.parameters, held.gradients) == (2 * parameters, 4 * parameters)


def calls_of_a_step(settings: Deployment) -> dict[str, list[tuple[str, int, int]]]:
    specs = model_units(settings.model, settings.shape)
    stage = set_stage(settings, make_plan(settings, model_costs(settings, specs)), specs, torch.device("cpu"))
    with LoneRank(stage, 0) as rank:
        rank.warm_up()
        calls: dict[str, tuple[Calls, ...]] = rank.rehearsed().calls
    return {phase: [(call.kind, call.num_bytes, call.count) for call in found] for phase, found in calls.items()}


@pytest.mark.parametrize("microbatch_size", [1, 4])
def test_gradients_are_reduced_once_a_step(microbatch_size: int) -> None:
    """However many microbatches add to them: four here, then one."""
    batch = {"global_batch_size": 8, "microbatch_size": microbatch_size, "sequence_length": 8}
    parameters = sum(
        p.numel() for u in built_alone(replicated(1, sharded=False), 0).units.values() for p in u.parameters()
    )
    whole = calls_of_a_step(replicated(2, sharded=False, batch=batch))
    assert whole == {"REDUCE_GRAD": [("all_reduce", 4 * parameters, 1)]}
    shared = calls_of_a_step(replicated(2, sharded=True, batch=batch))
    assert shared == {
        "REDUCE_GRAD": [("reduce_scatter", 4 * parameters, 1)],
        "OPTIMIZER": [("all_gather", 4 * parameters, 1), ("all_reduce", 4, 1)],  # parameters, and the norm
    }


def test_what_is_held_is_a_fraction() -> None:
    assert FLOAT32.shared_by(1) == FLOAT32
    assert FLOAT32.shared_by(3).total == 8 + Fraction(8, 3)
    assert FLOAT32.shared_by(3).held(10) == 107
