"""A plan's peak bytes are those of the byte ledger of its ranks: alone, and among their peers."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from hybrid_runtime.calibration import Calibration
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.lone import unit_times
from hybrid_runtime.pieces import read_piece
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.planned import plan_deployment
from hybrid_runtime.records import Memory
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue
from tests.lone.test_same_as_real import CPU, alone, really
from tests.parity import deployment
from tests.planner.planning import calibration
from tests.ranks import run_ranks

LINEAR = ["embedding..1.mlp[:32]", "1.mlp[32:]..head"]
V = ["embedding..0.mlp[:32]", "0.mlp[32:]..1.mlp", "2.attn..2.mlp[:16]", "2.mlp[16:]..head"]
ROWS = [20, 30]
ONE_F_ONE_B = {"schedule": "1f1b", "cuts": LINEAR}
ZB_V = {"schedule": "zb_v", "cuts": V, "embedding_rows": ROWS}
CASES: dict[int, list[dict[str, Any]]] = {  # by tp_degree
    1: [{"schedule": "zb_h1", "cuts": LINEAR, "embedding_rows": ROWS}, {"schedule": "interleaved_1f1b"}],
    2: [ONE_F_ONE_B, ZB_V, {"schedule": "v_half", "cuts": V, "embedding_rows": [0, 50]}],
}


def settings_of(tp: int, pipeline: dict[str, Any], *, sequence_parallel: bool = False) -> Deployment:
    return deployment(
        model={"num_layers": 4, "hidden_size": 64, "num_kv_heads": 4, "ffn_size": 64},
        parallel={"tp_degree": tp, "pp_degree": 2, "sequence_parallel": sequence_parallel},
        pipeline=pipeline,
        batch={"global_batch_size": 6, "microbatch_size": 1, "sequence_length": 32},
        search={"vary": []},
    )


def weighed(settings: Deployment) -> Calibration:
    """A calibration whose units were weighed here; their times mean nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_times, "ROUNDS", 1)
        patch.setattr(unit_times, "MOST_ROUNDS", 1)
        units, _ = unit_times.unit_times(unit_times.wanted_of(settings, CPU), lambda _: None)
    return calibration(settings).model_copy(update={"units": tuple(units)})


def off(plan: Plan, pp_rank: int, ledger: Memory) -> float:
    """Predicted over measured, less one."""
    assert plan.predicted is not None
    assert ledger.ledger_peak
    return plan.predicted.ranks[pp_rank].memory.ledger_peak / ledger.ledger_peak - 1


@pytest.mark.parametrize("tp", [1, 2])
def test_every_rank_alone(tp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighed units and formulas; with tp 2 the harder case, sequence parallelism, and every W in its turn.

    What is left of the difference is a batch, of which the ends of a pipeline keep all tokens in one storage.
    """
    monkeypatch.setattr(WeightQueue, "_oldest_that_fits", lambda *_: None)
    settings = [settings_of(tp, case, sequence_parallel=tp > 1) for case in CASES[tp]]
    costs = weighed(settings[0])
    for one in settings:
        plans = plan_deployment(one, costs).plan, plan_deployment(one, None).plan
        for pp_rank in range(2):
            ledger = alone(one, plans[0], pp_rank * tp)[0][-1]
            measured, formula = (off(plan, pp_rank, ledger) for plan in plans)
            assert abs(measured) < 0.0025 / tp, (one.pipeline, pp_rank, measured)
            assert abs(formula) < 0.005, (one.pipeline, pp_rank, formula)


def among_peers(rank: int, cases: list[tuple[Deployment, Plan]]) -> None:
    for settings, plan in cases:
        ledger = really(settings, plan)[0][-1]
        assert abs(off(plan, plan.mesh.place(rank).pp, ledger)) < 0.01
        dist.barrier()


@pytest.mark.ranks
def test_two_tensor_ranks_of_two_stages_among_peers() -> None:
    """Weight gradients that are computed while a collective is awaited leave a real rank with less, if anything."""
    settings = [settings_of(2, case) for case in (ONE_F_ONE_B, ZB_V)]
    costs = weighed(settings[0])
    plans = [(one, plan_deployment(one, costs).plan) for one in settings]
    assert all(any(map(read_piece, stage.units)) for _, plan in plans for stage in plan.stages)
    run_ranks(4, among_peers, plans)
