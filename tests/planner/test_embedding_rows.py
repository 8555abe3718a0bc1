"""Rows of a sharded embedding: none is lost, wrong ones get a sentence, and a plan holds their lookups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.pieces import read_piece
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.baseline import baseline_deployment
from hybrid_runtime.planner.embedding_rows import embedding_pieces, padded_rows, stage_parameters
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.planner.simulate import simulate_plan
from hybrid_runtime.schedule.actions import parse_actions
from hybrid_runtime.schedule.check import check
from hybrid_runtime.schedule.files import save_lists
from tests.planner.test_make import costs_of, deployment


def costs(vocabulary: int) -> list[UnitCost]:
    zero = {"forward_flops": 0, "input_grad_flops": 0, "weight_grad_flops": 0}
    return [
        UnitCost(name="embedding", parameters=vocabulary * 8, parts=vocabulary, **zero),
        UnitCost(name="head", parameters=5, **zero),
    ]


@given(
    vocabulary=st.integers(2, 500), tp=st.integers(1, 4), weights=st.lists(st.integers(0, 9), min_size=2, max_size=6)
)
def test_no_row_is_lost(vocabulary: int, tp: int, weights: list[int]) -> None:
    """Any division of the padded rows, and the equal one: ranges in a row, from 0 to the end, counted once."""
    mesh = Mesh(tp_degree=tp, pp_degree=len(weights))
    padded = padded_rows(costs(vocabulary)[0], tp)
    shares = [padded // tp * weight // (sum(weights) or 1) for weight in weights]
    shares[-1] += padded // tp - sum(shares)
    for rows in ([share * tp for share in shares], "equal"):
        names = embedding_pieces(rows, costs(vocabulary), mesh)
        held = [piece for piece in map(read_piece, names) if piece is not None]
        assert len(names) == mesh.pp_degree
        assert [piece.start for piece in held] == [0, *(piece.stop for piece in held)][:-1]
        assert held[-1].stop == padded
        assert all(edge % tp == 0 for piece in held for edge in piece[1:])
        place = range(mesh.pp_degree)
        stages = [("embedding",), *[()] * (mesh.pp_degree - 2), ("head",)]
        assert sum(stage_parameters(stages, place, costs(vocabulary), names)) == vocabulary * 8 + 5
    assert max(piece.parts for piece in held) - padded // tp // mesh.pp_degree * tp <= tp


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([100, 156], "2 numbers of rows are given, but pp_degree 3 needs one per pipeline rank"),
        ([86, 85, 85], "85 rows are no multiple of tp_degree 2"),
        ([86, 86, 86], "the rows add up to 258, but 'embedding' has 256; give them all, each once"),
    ],
)
def test_wrong_rows(rows: list[int], words: str) -> None:
    settings = deployment(pipeline={"embedding_rows": rows})
    with pytest.raises(PlanError, match=r"^pipeline\.embedding_rows: ") as refused:
        make_plan(settings, costs_of(settings))
    assert words in str(refused.value)


def test_a_unit_without_rows() -> None:
    with pytest.raises(PlanError, match="unit 'head' cannot be cut into rows"):
        embedding_pieces("equal", costs(9)[1:], Mesh(pp_degree=2))
    assert embedding_pieces(None, costs(9), Mesh(pp_degree=2)) == ()


@pytest.mark.parametrize("schedule", ["1f1b", "zb_v", "auto"])
def test_plan(schedule: str) -> None:
    settings = deployment(pipeline={"schedule": schedule, "embedding_rows": [0, 56, 200]})
    plan = make_plan(settings, costs_of(settings))
    whole = make_plan(deployment(pipeline={"schedule": schedule}), costs_of(settings))
    assert plan == make_plan(settings, costs_of(settings))
    assert plan.embedding_pieces == ("", "embedding[0:56]", "embedding[56:256]")
    lists = [parse_actions(row) for row in plan.actions]
    assert not check(lists, plan.stage_to_rank, plan.num_microbatches, "train").findings
    assert [sum(action.kind.is_lookup for action in row) for row in lists] == [2 * plan.num_microbatches] * 3
    assert sum(plan.prediction.stage_parameters) == sum(whole.prediction.stage_parameters)
    assert plan.prediction.stage_parameters[0] == whole.prediction.stage_parameters[0] - plan.units[0].parameters
    assert plan.prediction.peak_in_flight == whole.prediction.peak_in_flight
    assert plan.prediction.ideal_busy_ppm == whole.prediction.ideal_busy_ppm
    assert simulate_plan(plan, "plan.json").step.makespan == simulate_plan(whole, "plan.json").step.makespan


def test_lookups_of_a_file(tmp_path: Path) -> None:
    """A file's own lookups are kept; they must be of the ranks that hold rows."""
    tables: dict[str, Any] = {"parallel": {"pp_degree": 2}}
    made = make_plan(settings := deployment(pipeline={"embedding_rows": [0, 256]}, **tables), costs_of(settings))
    file = tmp_path / "own.csv"
    save_lists(file, [parse_actions(row) for row in made.actions])
    own = {"schedule": str(file)}
    assert (
        make_plan(deployment(pipeline={**own, "embedding_rows": "equal"}, **tables), made.units).actions == made.actions
    )
    with pytest.raises(PlanError, match=r"ranks \[0, 1\], but rows are on ranks \[0\]"):
        make_plan(deployment(pipeline={**own, "embedding_rows": [256, 0]}, **tables), made.units)
    with pytest.raises(PlanError, match=r"pipeline\.embedding_rows is not given"):
        make_plan(deployment(pipeline=own, **tables), made.units)


def test_baselines_keep_rows_of_the_same_mesh() -> None:
    for kind, rows in (("naive_pipeline", "equal"), ("tp_only", None), ("single", None)):
        settings = deployment(pipeline={"embedding_rows": "equal"}, baseline={"kind": kind})
        assert baseline_deployment(settings).pipeline.embedding_rows == rows
