from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.plan import Plan, UnitCost, read_plan
from hybrid_runtime.planner import make
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.schedule.actions import ActionList, parse_actions
from hybrid_runtime.schedule.check import check
from hybrid_runtime.schedule.gpipe import gpipe


def deployment(**tables: Any) -> Deployment:
    values = {
        "name": "test",
        "model": {"preset": "tiny"},
        "parallel": {"tp_degree": 2, "pp_degree": 3},
        "batch": {"global_batch_size": 16, "microbatch_size": 2, "sequence_length": 32},
    }
    return parse_deployment(values | tables, source="test")


def costs_of(deployment: Deployment) -> tuple[UnitCost, ...]:
    assert deployment.shape is not None
    assert deployment.batch is not None
    return unit_costs(
        deployment.shape,
        microbatch_size=deployment.batch.microbatch_size,
        sequence_length=deployment.batch.sequence_length,
        workload=deployment.workload.kind,
    )


def plan_of(**tables: Any) -> Plan:
    made = deployment(**tables)
    return make_plan(made, costs_of(made))


def test_what_a_plan_holds() -> None:
    plan = plan_of()
    assert (plan.mesh, plan.num_microbatches, plan.schedule) == (Mesh(tp_degree=2, pp_degree=3), 8, "1f1b")
    assert plan.stage_to_rank == (0, 1, 2)
    assert plan.prediction.peak_in_flight == (3, 2, 1)
    assert plan.prediction.receive_depth == {"0>1": 2, "1>0": 2, "1>2": 2, "2>1": 2}
    assert check(list(map(parse_actions, plan.actions)), plan.stage_to_rank, 8, "train").findings == ()


@pytest.mark.parametrize("kind", ["train", "forward"])
@pytest.mark.parametrize("cuts", ["even", "balanced", ["embedding..0.mlp", "1.attn..4.attn", "4.mlp..head"]])
def test_stages_sum_to_the_model(kind: str, cuts: object) -> None:
    plan = plan_of(workload={"kind": kind}, pipeline={"cuts": cuts})
    assert sum(plan.prediction.stage_flops) == sum(unit.flops for unit in plan.units)
    assert sum(plan.prediction.stage_parameters) == sum(unit.parameters for unit in plan.units)
    assert [name for stage in plan.stages for name in stage.units] == [unit.name for unit in plan.units]


def test_the_busiest_stage_decides_the_ideal_busy_share() -> None:
    made = deployment(parallel={"pp_degree": 2}, model={"units": "some:units"})
    one = [UnitCost(name=name, forward_flops=1, input_grad_flops=1, weight_grad_flops=1, parameters=0) for name in "ab"]
    assert make_plan(made, one).prediction.ideal_busy_ppm == (888_888, 888_888)  # 8 / (8 + 1)
    double = [one[0], one[1].model_copy(update={"forward_flops": 2, "input_grad_flops": 2, "weight_grad_flops": 2})]
    assert make_plan(made, double).prediction.ideal_busy_ppm == (470_588, 941_176)  # 24 and 48 of 8 * 6 + 3
    zero = {"forward_flops": 0, "input_grad_flops": 0, "weight_grad_flops": 0}
    not_counted = [unit.model_copy(update=zero) for unit in one]
    assert make_plan(made, not_counted).prediction.ideal_busy_ppm == (888_888, 888_888)


def test_one_rank_is_always_busy() -> None:
    plan = plan_of(parallel={}, batch={"global_batch_size": 1, "microbatch_size": 1, "sequence_length": 8})
    assert plan.actions == (("0F0", "0B0"),)
    assert plan.prediction.ideal_busy_ppm == (1_000_000,)


def test_forward_only() -> None:
    plan = plan_of(workload={"kind": "forward"})
    assert plan.prediction.peak_in_flight == (1, 1, 1)
    assert not any("B" in action for actions in plan.actions for action in actions)


def test_same_inputs_same_plan_and_json_round_trip(tmp_path: Path) -> None:
    plan = plan_of()
    assert plan.fingerprint == plan_of().fingerprint
    assert plan.fingerprint != plan_of(pipeline={"schedule": "gpipe"}).fingerprint
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert read_plan(tmp_path / "plan.json") == plan
    assert read_plan(tmp_path / "plan.json").fingerprint == plan.fingerprint


def test_another_mesh() -> None:
    made = deployment()
    plan = make_plan(made, costs_of(made), mesh=Mesh(dp_degree=2))
    assert (plan.mesh, plan.num_microbatches, len(plan.stages)) == (Mesh(dp_degree=2), 4, 1)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"batch": {"global_batch_size": 30, "microbatch_size": 4, "sequence_length": 8}},
            r"global_batch_size = 30 does not divide .* use global_batch_size 28 or 32, or microbatch_size 3 or 5",
        ),
        (
            {
                "parallel": {"dp_degree": 4},
                "batch": {"global_batch_size": 3, "microbatch_size": 1, "sequence_length": 8},
            },
            r"does not divide into 4 data-parallel replicas of microbatches of 1: use global_batch_size 4$",
        ),
        (
            {"batch": {"global_batch_size": 8, "microbatch_size": 16, "sequence_length": 8}},
            r"use global_batch_size 16, or microbatch_size 8$",
        ),
        ({"batch": None}, r"test: a plan needs \[batch\]"),
        ({"pipeline": {"schedule": "1f1bb"}}, "did you mean '1f1b'"),
        ({"pipeline": {"cuts": ["embedding..2.mlp", "3.attn..head"]}}, "2 stages are given, but pp_degree asks for 3"),
        ({"pipeline": {"cuts": ["embedding..2.mlp", "3.mlp", "4.attn..head"]}}, "1 unit is on no stage: 3.attn"),
        ({"parallel": {"pp_degree": 15}}, "15 pipeline stages need at least as many units, but the model has 14"),
    ],
)
def test_one_sentence_says_what_is_wrong(tables: dict[str, Any], message: str) -> None:
    made = deployment(**tables)
    with pytest.raises(PlanError, match=message):
        make_plan(made, costs_of(deployment()))


def test_a_wrong_schedule_never_becomes_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards_reversed(name: str, pp_degree: int, num_microbatches: int, workload: str) -> Sequence[ActionList]:
        lists = gpipe(pp_degree, num_microbatches)
        return [(*actions[:num_microbatches], *reversed(actions[num_microbatches:])) for actions in lists]

    monkeypatch.setattr(make, "generate", backwards_reversed)
    with pytest.raises(PlanError, match=r"wrong: pipeline rank 0, position \d+, 0B6: gradients of stage"):
        plan_of()
