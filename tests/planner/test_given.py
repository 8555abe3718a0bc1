"""A plan that is given: it makes the deployment that runs, and one for other work is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.given import adopted, read_given, resolved
from hybrid_runtime.planner.make import baseline_deployment, make_plan
from tests.commands import command, small, write_json


def deployed(**tables: Any) -> Deployment:
    return parse_deployment(small(**tables), source="small")


def planned(deployment: Deployment) -> Plan:
    assert deployment.shape is not None
    assert deployment.batch is not None
    batch = deployment.batch
    return make_plan(
        deployment,
        unit_costs(
            deployment.shape,
            microbatch_size=batch.microbatch_size,
            sequence_length=batch.sequence_length,
            workload=deployment.workload.kind,
        ),
    )


def written(folder: Path, plan: Plan) -> Path:
    path = folder / "given.json"
    path.write_text(plan.to_json())
    return path


OTHER_LAYOUT: dict[str, Any] = {
    "parallel": {"tp_degree": 2, "pp_degree": 2},
    "pipeline": {"schedule": "zb_v", "cuts": ["embedding", "0.attn..0.mlp", "1.attn", "1.mlp..head"]},
}


def test_the_plan_decides_the_layout_and_the_file_the_work(tmp_path: Path) -> None:
    deployment, plan = deployed(baseline={"kind": "naive_pipeline"}), planned(deployed(**OTHER_LAYOUT))
    found = resolved(deployment, read_given(written(tmp_path, plan)), "given.json")
    assert (found.mesh, found.pipeline.schedule, found.pipeline.virtual_stages) == (plan.mesh, "zb_v", 2)
    assert found.pipeline.cuts == OTHER_LAYOUT["pipeline"]["cuts"]
    assert (found.model, found.data, found.optimizer, found.targets) == (
        deployment.model,
        deployment.data,
        deployment.optimizer,
        deployment.targets,
    )
    assert resolved(found, plan, "given.json").fingerprint == found.fingerprint
    assert planned(found).stages == plan.stages
    assert planned(found).actions == plan.actions
    assert adopted(plan, planned(found).units, "given.json") is plan
    naive = baseline_deployment(found)
    assert (naive.mesh, naive.pipeline.schedule, naive.num_microbatches) == (plan.mesh, "gpipe", 1)


def test_the_microbatch_size_is_the_plans(tmp_path: Path) -> None:
    plan = planned(deployed(batch={"microbatch_size": 2}, parallel={"pp_degree": 2}))
    found = resolved(deployed(), plan, "given.json")
    assert found.batch is not None
    assert (found.batch.microbatch_size, found.num_microbatches) == (2, 2)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"workload": {"kind": "forward"}}, "workload 'train' in the plan, 'forward' in small"),
        ({"batch": {"global_batch_size": 8}}, "global_batch_size 4 in the plan, 8 in small"),
        ({"batch": {"sequence_length": 32}}, "sequence_length 16 in the plan, 32 in small"),
        ({"model": {"num_layers": 3}}, "another model: it has 6 units, the model 8"),
        ({"model": {"ffn_size": 64}}, "another model: 0.mlp has .* forward flops in the plan, .* here"),
        ({"model": {"qkv_bias": True}}, "another model: 0.attn has .* parameters in the plan, .* here"),
        ({"batch": None}, "small has no .batch."),
    ],
)
def test_a_plan_for_other_work_is_refused_by_name(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=f"given.json: is a plan for other work: {words}"):
        resolved(deployed(**tables), planned(deployed()), "given.json")


def test_units_of_another_model_are_refused_where_they_are_known() -> None:
    plan = planned(deployed())
    other = [plan.units[0].model_copy(update={"name": "front"}), *plan.units[1:]]
    with pytest.raises(PlanError, match="its unit 'embedding' is 'front' in the model"):
        adopted(plan, other, "given.json")


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"actions": (("0F0",),)}, "its lists are wrong"),
        ({"actions": (("0X0",),)}, "given.json: .*0X0"),
        ({"global_batch_size": 5}, "are 4 sequences, not 5"),
        ({"stages": ()}, "holds 0 stages"),
        ({"dp_degree": 0}, "dp_degree = 0 is not between 1 and 65536"),
    ],
)
def test_a_plan_that_is_wrong_is_refused(tmp_path: Path, update: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_given(written(tmp_path, planned(deployed()).model_copy(update=update)))


def test_the_number_of_ranks_is_the_plans(tmp_path: Path) -> None:
    file, plan = write_json(tmp_path / "file.json", small()), written(tmp_path, planned(deployed(**OTHER_LAYOUT)))
    done = command("run", file, "--plan", plan, "--dry-run", "--run-folder", tmp_path / "run")
    assert (done.code, f"--nproc-per-node 4 -m hybrid_runtime.job {file} --plan {plan} " in done.out) == (0, True)
    other = write_json(tmp_path / "other.json", small(batch={"sequence_length": 32}))
    refused = command("verify", other, "--plan", plan)
    assert (refused.code, "sequence_length 16 in the plan, 32 in small" in refused.err) == (2, True), refused.err


def test_a_plan_makes_no_deployment_that_a_file_may_not_ask_for() -> None:
    """Edited by hand: two stages on a rank, which a decode's token would pass twice."""
    serving = deployed(
        workload={"kind": "generate"}, load={"requests": 2}, parallel={"pp_degree": 2}, batch={"sequence_length": 64}
    )
    plan = planned(deployed(workload={"kind": "forward"}, parallel={"pp_degree": 2}, batch={"sequence_length": 64}))
    assert resolved(serving, plan, "p").pipeline.virtual_stages == 1
    stages = tuple(
        plan.stages[0].model_copy(update={"index": index, "pp_rank": index % 2, "units": (unit.name,)})
        for index, unit in enumerate(plan.units[:4])
    )
    with pytest.raises(PlanError, match=r"p: makes of small a deployment that serves with virtual_stages = 2; a token"):
        resolved(serving, plan.model_copy(update={"stages": stages}), "p")
