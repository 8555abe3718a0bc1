"""Layouts with rows of the embedding, and with what the file fixes."""

from __future__ import annotations

from typing import Any

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.planner.candidates import layouts
from hybrid_runtime.planner.evaluate import Evaluated, as_run, evaluate
from hybrid_runtime.planner.layout import Layout
from hybrid_runtime.planner.orders import known_rows
from hybrid_runtime.planner.planned import plan_deployment
from hybrid_runtime.planner.predicted_step import predicted_step
from hybrid_runtime.planner.request import model_of, setting_of, space_of
from hybrid_runtime.schedule.actions import Kind
from tests.planner.planning import calibration, deployment

CUTS = ["embedding..3.mlp[:128]", "3.mlp[128:]..8.mlp", "9.attn..head"]
ROWS = [128, 0, 256]
V_CUTS = ["embedding..1.mlp", "2.attn..3.mlp", "4.attn..5.mlp", "6.attn..7.mlp", "8.attn..9.mlp", "10.attn..head"]


def evaluated(*, post_ns: int = 0, **tables: Any) -> Evaluated:
    """The only layout of a file that fixes everything."""
    file = deployment(search={"vary": []}, **tables)
    found = calibration(file)
    messages = tuple(message.model_copy(update={"post_ns": post_ns}) for message in found.messages)
    setting, model = setting_of(file), model_of(file, found.model_copy(update={"messages": messages}))
    (layout,) = [one for one in layouts(space_of(file), setting) if isinstance(one, Layout)]
    return as_run(evaluate(layout, setting, model, known_rows(layout, setting)), setting, model)


def test_what_the_file_fixes_is_planned_with() -> None:
    file = deployment(search={"vary": []}, pipeline={"schedule": "zb_h1", "cuts": CUTS, "embedding_rows": ROWS})
    plan = plan_deployment(file, calibration(file)).plan
    assert [stage.units[0] for stage in plan.stages] == ["embedding", "3.mlp[128:256]", "9.attn"]
    assert plan.embedding_pieces == ("embedding[0:128]", "", "embedding[128:384]")
    kinds = [{action.split("F")[0][-1] for action in row if "EF" in action} for row in plan.actions]
    assert kinds == [{"E"}, set(), {"E"}]
    assert plan.predicted is not None
    for rank in plan.predicted.ranks:
        assert rank.time.total_ns == plan.predicted.step_time.p50_ns


def test_cuts_that_are_none_are_said() -> None:
    file = deployment(search={"vary": []}, pipeline={"schedule": "1f1b", "cuts": [*CUTS[:2], "9.mlp..head"]})
    with pytest.raises(PlanError, match=r"pipeline.cuts: .*9.attn"):
        plan_deployment(file, calibration(file))


def test_lookups_are_actions_of_their_own() -> None:
    found = evaluated(pipeline={"schedule": "1f1b", "cuts": CUTS, "embedding_rows": ROWS})
    kinds = [[action.kind for action in row] for row in found.lists]
    assert [row.count(Kind.EF) for row in kinds] == [row.count(Kind.EB) for row in kinds] == [6, 0, 6]
    costs = found.step.costs
    assert costs.compute(0, Kind.EF) == found.staged.lookup.forward == costs.compute(2, Kind.EF) > 0
    assert found.bound_ns <= found.step.makespan


def test_a_later_piece_receives_a_sum_that_nobody_saves() -> None:
    found = evaluated(pipeline={"schedule": "1f1b", "cuts": CUTS})
    kept = found.step.costs.action_bytes.kept
    works, whole = found.staged.works, found.staged.line.whole_carry_bytes
    assert [kept[stage, Kind.F] - works[stage].saved for stage in range(3)] == [0, whole, 0]


def test_a_tied_weight_lies_whole_on_the_head_s_rank_beside_rows_elsewhere() -> None:
    layout = {"schedule": "1f1b", "cuts": ["embedding..3.mlp", "4.attn..8.mlp", "9.attn..head"]}
    tied = {"tie_embeddings": True}
    apart, rows = (evaluated(model=tied, pipeline=layout | more) for more in ({}, {"embedding_rows": ROWS}))
    free = evaluated(model={"tie_embeddings": False}, pipeline=layout | {"embedding_rows": ROWS})
    whole = 384 * apart.staged.line.whole_carry_bytes // 64 // 2  # float32 rows of one of two tensor-parallel ranks
    assert apart.memory[0].parameters - rows.memory[0].parameters == whole * 256 // 384
    assert apart.memory[2].parameters == rows.memory[2].parameters  # its rows are the head's own
    assert free.memory[2].parameters - rows.memory[2].parameters == whole * 256 // 384


def test_the_bubble_is_what_the_plan_s_ranks_wait() -> None:
    found = evaluated(pipeline={"schedule": "1f1b", "cuts": CUTS, "embedding_rows": ROWS})
    file = deployment()
    ranks = predicted_step(found, setting_of(file), model_of(file, calibration(file))).ranks
    waited = sum(rank.time.idle_ns for rank in ranks)
    assert float(found.bubble) == pytest.approx(waited / (3 * found.step_ns), abs=1e-6)


def test_messages_occupy_both_ranks() -> None:
    """The carry inside a unit is two tensors; stage 1 takes and hands on; lookups are one message an action."""
    free, found = (
        evaluated(post_ns=post, pipeline={"schedule": "1f1b", "cuts": CUTS, "embedding_rows": ROWS}) for post in (0, 7)
    )

    def more(stage: int, kind: Kind) -> float:
        return float(found.step.costs.collectives(stage, kind) - free.step.costs.collectives(stage, kind))

    for kind in (Kind.F, Kind.B):
        assert [more(stage, kind) for stage in range(3)] == [2 * 7, 3 * 7, 7]
    assert [more(stage, Kind.W) for stage in range(3)] == [0, 0, 0]
    assert [more(stage, kind) for stage in (0, 2) for kind in (Kind.EF, Kind.EB)] == [7] * 4
    assert found.step.makespan > free.step.makespan


def test_a_message_to_oneself_costs_nothing() -> None:
    """Of a V, stages 2 and 3 of 6 are on the last rank: each has one message, stages 1 and 4 have two."""
    layout = {"schedule": "zb_v", "cuts": V_CUTS}
    free, found = (evaluated(post_ns=post, pipeline=layout) for post in (0, 7))
    more = [
        found.step.costs.collectives(stage, Kind.F) - free.step.costs.collectives(stage, Kind.F) for stage in range(6)
    ]
    assert more == [7, 14, 7, 7, 14, 7]


def test_replicas_that_share_the_optimizer_hold_less_and_gather() -> None:
    layout = {"schedule": "1f1b", "cuts": ["embedding..6.mlp", "7.attn..head"], "embedding_rows": [192, 192]}
    whole, shared = (
        evaluated(parallel={"pp_degree": 2, "tp_degree": 2, "dp_degree": 2, "shard_optimizer": on}, pipeline=layout)
        for on in (False, True)
    )
    for one, other in zip(whole.memory, shared.memory):
        assert other.optimizer == one.optimizer // 2
        assert other == one.model_copy(update={"optimizer": other.optimizer})
    assert all(other < one for one, other in zip(whole.optimizer_ns, shared.optimizer_ns))
    file = deployment(parallel={"pp_degree": 2, "tp_degree": 2, "dp_degree": 2, "shard_optimizer": True})
    model = model_of(file, calibration(file))
    norm_ns = model.collective_ns("all_reduce", 4, 8, same_host=True) + model.collective_ns(
        "all_reduce", 2, 8, same_host=True
    )
    for memory, summed_ns in zip(shared.memory, shared.data_parallel_ns):
        scattered, gathered = (
            model.collective_ns(kind, 2, memory.parameters, same_host=True) for kind in ("reduce_scatter", "all_gather")
        )
        assert summed_ns == scattered + gathered + norm_ns
