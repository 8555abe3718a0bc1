from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.plan import Plan, UnitCost, read_plan
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.schedule import choose
from hybrid_runtime.schedule.actions import ActionList, parse_actions
from hybrid_runtime.schedule.check import check
from hybrid_runtime.schedule.files import save_lists
from hybrid_runtime.schedule.gpipe import gpipe
from hybrid_runtime.schedule.registry import generate_cells


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


def test_cuts_inside_units_move_flops_by_parts() -> None:
    plan = plan_of(pipeline={"cuts": ["embedding..1.mlp[:64]", "1.mlp[64:]..3.attn[:2]", "3.attn[2:]..head"]})
    assert plan.stages[1].units == ("1.mlp[64:256]", "2.attn", "2.mlp", "3.attn[0:2]")
    assert sum(plan.prediction.stage_flops) == sum(unit.flops for unit in plan.units)
    assert sum(plan.prediction.stage_parameters) == sum(unit.parameters for unit in plan.units)
    mlp, attention = (next(unit for unit in plan.units if unit.name == name) for name in ("1.mlp", "3.attn"))
    assert plan.prediction.stage_flops[1] == mlp.flops * 3 // 4 + attention.flops + mlp.flops + attention.flops // 3
    norms, layers = 4 * 96, 2 * 4 * 96 * 96 + 3 * 96 * 256 * 5 // 4  # of 0.attn, 0.mlp, 1.attn and a quarter of 1.mlp
    assert plan.prediction.stage_parameters[0] == 256 * 96 + norms + layers


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        (
            ["embedding..1.mlp[:65]", "1.mlp[65:]..head"],
            "cut at 65 of unit '1.mlp' is no multiple of tp 2; cut at 64 or 66",
        ),
        (["embedding..1.mlp[:64]", "1.mlp[66:]..head"], "parts 64 to 66 of unit '1.mlp' are on no stage"),
        (["embedding[:64]", "embedding[64:]..head"], "unit 'embedding' cannot be cut"),
    ],
)
def test_cuts_inside_units_that_do_not_hold_the_model(cuts: list[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan_of(parallel={"tp_degree": 2, "pp_degree": 2}, pipeline={"cuts": cuts})


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


@pytest.mark.parametrize("kind", ["train", "forward"])
@pytest.mark.parametrize(
    ("schedule", "virtual_stages", "stage_to_rank", "peaks"),
    [
        ("zb_h1", None, (0, 1), (2, 2)),
        ("interleaved_1f1b", None, (0, 1, 0, 1), (2.5, 1.5)),
        ("interleaved_zb", 3, (0, 1, 0, 1, 0, 1), (2, 2)),
        ("zb_v", 2, (0, 1, 1, 0), (2, 2)),
        ("dualpipe_v", None, (0, 1, 1, 0), (2.5, 2.5)),
        ("v_min", None, (0, 1, 1, 0), (1, 2)),
    ],
)
def test_several_stages_on_a_rank(
    kind: str, schedule: str, virtual_stages: int | None, stage_to_rank: tuple[int, ...], peaks: tuple[float, ...]
) -> None:
    pipeline = {"schedule": schedule, "virtual_stages": virtual_stages}
    plan = plan_of(parallel={"pp_degree": 2}, pipeline=pipeline, workload={"kind": kind})
    assert plan.stage_to_rank == stage_to_rank
    assert [stage.pp_rank for stage in plan.stages] == list(stage_to_rank)
    assert [name for stage in plan.stages for name in stage.units] == [unit.name for unit in plan.units]
    assert check(list(map(parse_actions, plan.actions)), stage_to_rank, 8, kind).findings == ()
    per_rank = len(stage_to_rank) // 2
    assert plan.peak_microbatches == (tuple(map(Fraction, peaks)) if kind == "train" else (Fraction(1, per_rank),) * 2)
    assert read_back(plan) == plan


def read_back(plan: Plan) -> Plan:
    return Plan.model_validate_json(plan.to_json())


def test_a_file_of_lists_is_a_schedule(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    save_lists(path, generate_cells("dualpipe_v", 2, 8, "train"))
    plan = plan_of(parallel={"pp_degree": 2}, pipeline={"schedule": str(path)})
    named = plan_of(parallel={"pp_degree": 2}, pipeline={"schedule": "dualpipe_v"})
    assert (plan.actions, plan.stages, plan.prediction) == (named.actions, named.stages, named.prediction)
    assert plan.schedule == str(path)


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
        (
            {"pipeline": {"schedule": "zb_v", "cuts": ["embedding..2.mlp", "3.attn..3.mlp", "4.attn..head"]}},
            "3 stages are given, but pp_degree 3 with 2 stages on each rank asks for 6",
        ),
        ({"pipeline": {"schedule": "interleaved_zb", "virtual_stages": 5}}, "15 pipeline stages need at least as many"),
        ({"pipeline": {"schedule": "1f1b", "virtual_stages": 2}}, "1f1b has exactly 1 on each pipeline rank"),
        ({"pipeline": {"schedule": "none.csv"}}, "none.csv: cannot be read"),
        (
            {"pipeline": {"schedule": "dualpipe_v"}, "parallel": {"pp_degree": 5}},
            "dualpipe_v on 5 pipeline ranks needs at least 10 microbatches, not 8",
        ),
        ({"parallel": {"pp_degree": 15}}, "15 pipeline stages need at least as many units, but the model has 14"),
    ],
)
def test_one_sentence_says_what_is_wrong(tables: dict[str, Any], message: str) -> None:
    made = deployment(**tables)
    with pytest.raises(PlanError, match=message):
        make_plan(made, costs_of(deployment()))


def test_a_wrong_schedule_never_becomes_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards_reversed(
        name: str, pp_degree: int, num_microbatches: int, workload: str, virtual_stages: int | None
    ) -> Sequence[ActionList]:
        lists = gpipe(pp_degree, num_microbatches)
        return [(*actions[:num_microbatches], *reversed(actions[num_microbatches:])) for actions in lists]

    monkeypatch.setattr(choose, "generate", backwards_reversed)
    with pytest.raises(PlanError, match=r"wrong: pipeline rank 0, position \d+, 0B6: gradients of stage"):
        plan_of()
