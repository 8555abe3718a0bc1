"""Replicas: sums that the pipeline's tail hides, and who shares the optimizer's state."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.planner.analytic import AnalyticCosts
from hybrid_runtime.planner.candidates import layouts
from hybrid_runtime.planner.evaluate import Evaluated, evaluate
from hybrid_runtime.planner.given import resolved
from hybrid_runtime.planner.layout import Layout
from hybrid_runtime.planner.orders import known_rows
from hybrid_runtime.planner.planned import Planned, plan_deployment
from hybrid_runtime.planner.predicted_step import predicted_step
from hybrid_runtime.planner.replicas import norm_sum_ns, sum_ns, update_ns
from hybrid_runtime.planner.request import model_of, setting_of, space_of
from hybrid_runtime.planner.step_model import Collective, Overlap
from tests.planner.planning import calibration, deployment


def replicated(schedule: str = "1f1b", **parallel: Any) -> Deployment:
    return deployment(
        parallel={"tp_degree": 2, "pp_degree": 3, "dp_degree": 2} | parallel,
        pipeline={"schedule": schedule},
        batch={"global_batch_size": 12, "microbatch_size": 1, "sequence_length": 64},
        search={"vary": []},
    )


def evaluated(file: Deployment, **overlap: str) -> Evaluated:
    found = calibration(file).model_copy(update={"overlap": overlap})
    setting, model = setting_of(file), model_of(file, found)
    (layout,) = [one for one in layouts(space_of(file), setting) if isinstance(one, Layout)]
    return evaluate(layout, setting, model, known_rows(layout, setting))


def test_one_stage_per_rank_hides_only_what_other_ranks_take_longer() -> None:
    file = replicated()
    found, setting, model = evaluated(file), setting_of(file), model_of(file, calibration(file))
    norm = norm_sum_ns(found.layout, setting, model)
    counts = [memory.parameters // 4 for memory in found.memory]
    for exposed, count in zip(found.data_parallel_ns, counts):
        assert exposed == sum_ns(count, found.layout, setting, model) + norm
    ends = [int(found.step.time(found.step.ends[found.step.rows.row(rank)[-1]])) for rank in range(3)]
    sums = [end + sum_ns(count, found.layout, setting, model) for end, count in zip(ends, counts)]
    update = max(update_ns(count, found.layout, model) for count in counts)
    assert found.step_ns == max(sums) + norm + update + model.step_ns
    assert ends[2] < ends[0]  # a sum on rank 2 is over before rank 0's begins


def test_the_tail_hides_the_sum_of_a_stage_that_is_done_before() -> None:
    """In a V a rank's two stages end one after the other: the sum of the first runs beside the last's backwards."""
    file = replicated("zb_v")
    found, setting, model = evaluated(file), setting_of(file), model_of(file, calibration(file))
    norm = norm_sum_ns(found.layout, setting, model)
    whole = [sum_ns(memory.parameters // 4, found.layout, setting, model) for memory in found.memory]
    assert all(exposed - norm < alone for exposed, alone in zip(found.data_parallel_ns, whole))
    slower = evaluated(file, compute="1.5", collective="1.2")
    assert slower.step_ns > found.step_ns
    assert all(one >= other for one, other in zip(slower.data_parallel_ns, found.data_parallel_ns))
    for one in (found, slower):
        predicted = predicted_step(one, setting, model)
        assert {rank.time.total_ns for rank in predicted.ranks} == {one.step_ns}
        waited = sum(rank.time.idle_ns for rank in predicted.ranks)
        assert float(one.bubble) == pytest.approx(waited / (3 * one.step_ns), abs=1e-6)


def test_overlap_is_what_was_calibrated() -> None:
    file = replicated()
    found = calibration(file)
    assert model_of(file, None).overlap == Overlap()
    unknown = model_of(file, found.model_copy(update={"overlap": {}}))
    assert unknown.overlap == Overlap()
    assert any("gradient sums beside compute, taken to slow nothing down" in note for note in unknown.notes)
    known = model_of(file, found.model_copy(update={"overlap": {"compute": "1.08", "collective": "0.9"}}))
    assert known.overlap == Overlap(Fraction("1.08"), Fraction(1))


def planned(memory: str, **search: Any) -> Planned:
    return plan_deployment(
        deployment(
            model={"preset": "llama-3-8b", "num_layers": 8, "vocab_size": 32_000, "dtype": "float32"},
            parallel={"pp_degree": 2, "dp_degree": 4},
            batch={"global_batch_size": 32, "microbatch_size": 1, "sequence_length": 2048},
            hardware={"memory_per_device": memory},
            search={"vary": ["shard_optimizer", "cuts"], "top": 0} | search,
        ),
        None,
    )


def test_replicas_share_where_nothing_fits_else_or_it_is_faster() -> None:
    tight = planned("20 GB")
    assert tight.plan.shard_optimizer
    assert tight.best[0].peak_bytes <= 19e9
    assert any("out of memory" in line for line in tight.why_not)
    roomy = planned("80 GB")
    assert roomy.plan.shard_optimizer in (True, False)
    other = planned("80 GB", vary=["cuts"])
    assert other.plan.shard_optimizer is False
    assert roomy.best[0].step_ns <= other.best[0].step_ns
    line = next(line for line in roomy.why_not if "optimizer" in line.split(": ")[1])
    assert line.split(": ")[1] == (
        "optimizer whole on every replica" if roomy.plan.shard_optimizer else "optimizer sharded"
    )
    assert "% slower" in line


def test_a_layout_of_unknown_costs_is_a_loser_and_no_end_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharing comes in place of what does not fit, and only then is it seen that gathers were not measured so large."""
    known = AnalyticCosts.collective_ns

    def collective_ns(self: AnalyticCosts, kind: Collective, ranks: int, num_bytes: int, *, same_host: bool) -> int:
        if kind == "all_gather":
            raise PlanError(f"all_gather was measured up to 8 bytes, not {num_bytes}")
        return known(self, kind, ranks, num_bytes, same_host=same_host)

    monkeypatch.setattr(AnalyticCosts, "collective_ns", collective_ns)
    found = planned("20 GB", vary=["shard_optimizer", "cuts", "recompute"])
    assert not found.plan.shard_optimizer
    assert any("all_gather was measured up to" in line for line in found.why_not)


def test_a_plan_says_who_shares() -> None:
    found = planned("20 GB")
    file = deployment(
        model={"preset": "llama-3-8b", "num_layers": 8, "vocab_size": 32_000, "dtype": "float32"},
        parallel={"pp_degree": 2, "dp_degree": 4},
        batch={"global_batch_size": 32, "microbatch_size": 1, "sequence_length": 2048},
    )
    assert resolved(file, found.plan, "plan.json").parallel.shard_optimizer
    older = found.plan.model_copy(update={"shard_optimizer": None})
    assert not resolved(file, older, "plan.json").parallel.shard_optimizer
    assert "shard_optimizer" not in older.to_json()


def test_one_replica_has_nobody_to_share_with() -> None:
    found = planned("80 GB", vary=["shard_optimizer", "cuts", "pp_degree", "dp_degree"], devices=1)
    assert found.best[0].layout.mesh.dp_degree == 1
    assert not found.best[0].layout.shard_optimizer
    assert found.plan.shard_optimizer is None
    assert any("one replica has nobody to share the optimizer's state with" in one for one in found.sentences)


def test_layouts_differ_by_who_shares() -> None:
    file = replicated(shard_optimizer=True)
    (layout,) = [one for one in layouts(space_of(file), setting_of(file)) if isinstance(one, Layout)]
    assert layout.shard_optimizer
    assert str(layout).endswith(", optimizer sharded")
    assert not str(replace(layout, shard_optimizer=False)).endswith("sharded, optimizer sharded")
