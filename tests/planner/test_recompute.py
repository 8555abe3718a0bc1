"""What is forgotten and computed again: its bytes as the ledger counts them, its time, and who chooses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import DeploymentError, PlanError
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.unit import BuildContext, Microbatch, specs_of
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.plan import read_plan
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.given import resolved
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.planner.planned import plan_deployment
from hybrid_runtime.planner.replan import layout_of
from hybrid_runtime.planner.request import model_of
from hybrid_runtime.planner.work import Position
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.tensor_parallel.gradients import set_accumulate_in_place
from hybrid_runtime.tensor_parallel.recompute import Recompute
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue
from tests.planner.planning import deployment

KINDS: tuple[RecomputeKind, ...] = ("none", "selective", "full")
LAYERS = ("1.attn", "1.mlp", "2.attn")


def measured(of: Deployment, kind: RecomputeKind) -> dict[str, int]:
    """Bytes of a stage: kept by F, left for W, and held beyond that for a moment in I and B."""
    assert of.shape is not None
    assert of.batch is not None
    shape = (of.batch.microbatch_size, of.batch.sequence_length)
    units = build_units(specs_of(LAYERS, llama_units(of.shape)), BuildContext())
    for unit in units.values():
        set_accumulate_in_place(unit, True)
    ledger = ByteLedger([parameter for unit in units.values() for parameter in unit.parameters()])
    stage = Stage(0, list(units.items()), training=True)
    stage.use_queue(WeightQueue(keep=ledger.keep))
    stage.recompute(Recompute(kind), LAYERS)
    x, microbatch = torch.randn(*shape, of.shape.hidden_size), Microbatch(torch.zeros(shape, dtype=torch.int64))
    found: dict[str, int] = {}
    for index, actions in enumerate(("FB", "FIW")):
        for action in actions:
            before = ledger.in_use.activations
            with ledger.watching():
                if action == "F":
                    stage.forward(index, (x,), microbatch)
                elif action == "W":
                    stage.weight_gradient(index)
                else:
                    (stage.backward if action == "B" else stage.input_gradient)(index, (torch.ones_like(x),))
            after = ledger.in_use.activations
            found[action] = after - before if action == "F" else after
            found[f"in {action}"] = ledger.peaks.activations - max(before, after)
    return found


def test_bytes_are_the_ledgers() -> None:
    file = deployment(parallel={"tp_degree": 1, "pp_degree": 1})
    whole = model_of(file, None).line(1, file.batch.microbatch_size)  # type: ignore[union-attr]
    start, stop = Position(3), Position(6)
    for kind in KINDS:
        line, found = whole.recomputing(kind), measured(file, kind)
        work = line.work(start, stop)
        assert work.saved == pytest.approx(found["F"], rel=0.05), kind
        assert work.until_w == pytest.approx(found["I"], rel=0.05), kind
        assert work.saved + line.in_b(start, stop) == pytest.approx(found["F"] + found["in B"], rel=0.05), kind


def test_time_is_that_of_the_flops_done_again() -> None:
    file = deployment()
    whole = model_of(file, None).line(2, 1)
    mlp, attention = whole.units[2], whole.units[1]
    for kind in KINDS[1:]:
        for unit in (mlp, attention):
            again = unit.recomputing(kind).whole
            share = unit.cost.again_flops(kind) / unit.cost.forward_flops
            assert again.input_grad - unit.whole.input_grad == int(share * unit.whole.forward)
            assert again.backward - unit.whole.backward == int(share * unit.whole.forward)
            assert (again.forward, again.weight_grad) == (unit.whole.forward, unit.whole.weight_grad)
    assert mlp.cost.again_flops("full") * 3 == mlp.cost.forward_flops * 2
    assert whole.units[0].recomputing("full") is whole.units[0]
    assert whole.units[-1].recomputing("full") is whole.units[-1]


def large(memory: str, **search: Any) -> Deployment:
    return deployment(
        model={"preset": "llama-3-8b", "num_layers": 16, "vocab_size": 128_256, "dtype": "bfloat16"},
        parallel={},
        batch={"global_batch_size": 16, "microbatch_size": 1, "sequence_length": 8192},
        hardware={"devices": 8, "memory_per_device": memory},
        search={"top": 0, "schedules": ["zb_v"]} | search,
    )


def test_as_little_is_forgotten_as_fits() -> None:
    found = {memory: plan_deployment(large(memory), None).best[0] for memory in ("200 GB", "15 GB")}
    assert found["200 GB"].layout.recompute == "none"
    assert found["15 GB"].layout.recompute != "none"
    assert found["15 GB"].peak_bytes <= 15e9 * 0.95
    fixed = ["tp_degree", "pp_degree", "dp_degree", "microbatch_size", "schedule", "cuts", "embedding"]
    with pytest.raises(PlanError, match="no layout fits 15 GB less 5 %"):
        plan_deployment(large("15 GB", vary=fixed), None)


def test_what_a_plan_says_is_what_runs_and_is_planned_with_again(tmp_path: Path) -> None:
    file = deployment(search={"vary": ["schedule"]}, pipeline={"recompute": "full"})
    plan = plan_deployment(file, None).plan
    assert {stage.recompute for stage in plan.stages} == {"full"}
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert read_plan(tmp_path / "plan.json") == plan
    runs = resolved(file, plan, "plan.json")
    assert runs.pipeline.recompute == "full"
    assert layout_of(plan).recompute == "full"
    mixed = plan.model_copy(
        update={"stages": (plan.stages[0].model_copy(update={"recompute": "none"}), *plan.stages[1:])}
    )
    assert resolved(file, mixed, "plan.json").pipeline.recompute == ["none", *["full"] * (len(plan.stages) - 1)]
    assert layout_of(mixed).recomputes == ("none", *["full"] * (len(plan.stages) - 1))


def made(**pipeline: Any) -> Any:
    file = deployment(pipeline=pipeline)
    assert file.shape is not None
    return make_plan(file, unit_costs(file.shape, microbatch_size=1, sequence_length=64, workload="train"))


def test_a_word_for_each_stage_or_one_for_all() -> None:
    kinds = ["full", "none", "selective"]
    plan = made(schedule="1f1b", recompute=kinds)
    assert [stage.recompute for stage in plan.stages] == kinds
    with pytest.raises(
        PlanError, match=r"pipeline.recompute has 2 words for 3 stages; give one for each, or one for all"
    ):
        made(schedule="1f1b", recompute=["full", "none"])
    with pytest.raises(DeploymentError, match="workload of kind 'forward', which keeps nothing for a backward; remove"):
        deployment(pipeline={"recompute": "full"}, workload={"kind": "forward"})
    fixed = deployment(pipeline={"schedule": "1f1b", "recompute": kinds}, search={"vary": ["cuts"]})
    assert [stage.recompute for stage in plan_deployment(fixed, None).plan.stages] == kinds
    with pytest.raises(PlanError, match="recompute has 3 words for 6 stages"):
        plan_deployment(deployment(pipeline={"schedule": "zb_v", "recompute": kinds}, search={"vary": []}), None)


def test_plans_without_it_are_written_as_before() -> None:
    plan = made(schedule="1f1b")
    values = json.loads(plan.to_json())
    assert all("recompute" not in stage for stage in values["stages"])
    assert deployment().fingerprint == deployment(pipeline={"recompute": "none"}).fingerprint
    assert deployment().fingerprint != deployment(pipeline={"recompute": "full"}).fingerprint
