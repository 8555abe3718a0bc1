"""plan.json: what no plan says is refused where it is read, in one sentence, and not found out by a rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.deployment import parse_deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import read_plan
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.predicted import LABELS, PredictedRank, PredictedStep, RankMemory, RankTime, TimeInterval
from tests.commands import small


def values() -> dict[str, Any]:
    """A plan over two pipeline ranks with a sharded embedding and a prediction."""
    tables: dict[str, Any] = {
        "parallel": {"pp_degree": 2},
        "pipeline": {"schedule": "gpipe", "embedding_rows": "equal"},
    }
    deployment = parse_deployment(small(**tables), source="small")
    assert deployment.shape is not None
    assert deployment.batch is not None
    costs = unit_costs(
        deployment.shape,
        microbatch_size=deployment.batch.microbatch_size,
        sequence_length=deployment.batch.sequence_length,
        workload="train",
    )
    memory = RankMemory(parameters=1, gradients=1, optimizer=2, activations=1, buffers=0)
    predicted = PredictedStep(
        step_time=TimeInterval(p10_ns=1, p50_ns=2, p90_ns=3),
        pipeline_ns=1,
        bound_ns=1,
        ranks=tuple(PredictedRank(pp_rank=pp, time=RankTime(), memory=memory, flops=1) for pp in range(2)),
        labels=LABELS["analytic"],
        source="analytic",
    )
    plan = make_plan(deployment, costs).model_copy(update={"predicted": predicted})
    return dict(plan.model_dump(mode="json"))


def read(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    read_plan(path)


def without_lookups(plan: dict[str, Any]) -> None:
    plan["actions"] = [[name for name in row if "E" not in name or "SEND" in name or "RECV" in name]
                       for row in plan["actions"]]  # fmt: skip


EDITS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (without_lookups, r"on pipeline ranks \[0, 1\], but the list of no rank looks rows up"),
    (lambda plan: plan.update(embedding_pieces=[]), r"on pipeline ranks \[\], but .* \[0, 1\] look rows up"),
    (lambda plan: plan["embedding_pieces"].pop(), "embedding_pieces must name for each of the 2"),
    (lambda plan: plan["embedding_pieces"].reverse(), "from 0 on and one piece after the other"),
    (lambda plan: plan.update(embedding_pieces=["", ""]), "embedding_pieces must name"),
    (lambda plan: plan["embedding_pieces"].__setitem__(1, "head[0:4]"), "rows of 'embedding'"),
    (lambda plan: plan["embedding_pieces"].__setitem__(1, "nonsense"), "rows of 'embedding'"),
    (lambda plan: plan.update(tp_degree=10**9), "tp_degree = 1000000000 is not between 1 and 65536"),
    (lambda plan: plan.update(tp_degree=65536), "at most 65536 are supported"),
    (lambda plan: plan.update(pp_degree=-1), "pp_degree = -1"),
    (lambda plan: plan.update(units=[]), "0 units"),
    (lambda plan: plan["predicted"]["ranks"].pop(), "predicted.ranks are not the 2 pipeline ranks"),
    (lambda plan: plan["predicted"]["step_time"].update(p10_ns=3, p50_ns=2), "not in order"),
    (lambda plan: plan["predicted"]["ranks"][1]["memory"].update(buffers=-1), "buffers of pipeline rank 1 is below 0"),
    (lambda plan: plan["predicted"]["labels"].update(memory="measured"),
     "memory is said to be measured, but from 'analytic' it is modelled"),
    (lambda plan: plan["predicted"]["labels"].pop("compute"), "compute is said to be nothing"),
    (lambda plan: plan["predicted"]["labels"].update(luck="declared"), "luck is said to be declared.*no such figure"),
    (lambda plan: plan["predicted"].update(source="calibration", labels=LABELS["calibration"]),
     "'calibration' hold on one machine, and none is named"),
]  # fmt: skip


def test_a_plan_as_it_was_written_is_read(tmp_path: Path) -> None:
    read(tmp_path, values())


@pytest.mark.parametrize(("edit", "words"), EDITS, ids=[words for _, words in EDITS])
def test_what_no_plan_says_is_refused(edit: Callable[[dict[str, Any]], object], words: str, tmp_path: Path) -> None:
    plan = values()
    edit(plan)
    with pytest.raises(PlanError, match=words) as caught:
        read(tmp_path, plan)
    assert str(caught.value).endswith("plan again, or use the file as it was written")
