"""A replayed step, written down as ranks would, is taken apart into the parts that the replay put it together from."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from hybrid_runtime.planner.run_costs import run_costs, whole_step
from hybrid_runtime.records import OPTIMIZER, REDUCE_GRAD, RankRecords, Span, Wait
from hybrid_runtime.schedule.account import rank_times
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.replayed import Replay
from hybrid_runtime.verifier.metrics import Metrics
from hybrid_runtime.verifier.side import Side, load_side
from hybrid_runtime.verifier.time_budget import COMPONENTS, component_of, rank_parts
from tests.planner.test_measured_costs import replayed, sample, written
from tests.verifier.synthetic import MS, steady, write_run


def recorded(step: Replay, folder: Path, reduce_ns: int = 0) -> Metrics:
    """The step as every rank recorded it: the pipeline, summing gradients (early ranks wait), then 1 ms of update."""
    end_ns = int(step.makespan)
    ranks = []
    for rank in written(step, sample(folder / "sample")):
        *actions, _ = rank.steps[0].spans
        done_ns = actions[-1].end_ns
        spans = (
            *actions,
            Span(REDUCE_GRAD, done_ns, end_ns + reduce_ns, 0, 0),
            Span(OPTIMIZER, end_ns + reduce_ns, end_ns + reduce_ns + MS, MS, 0),
        )
        update = {"start_ns": 0, "end_ns": end_ns + reduce_ns + MS, "spans": spans, "step": 0}
        ranks.append(rank._replace(steps=(rank.steps[0].model_copy(update=update),)))
    side = load_side(write_run(folder / "run", steady([10] * len(ranks), 1)), "candidate")
    return metrics_of(side, ranks)


def metrics_of(side: Side, ranks: list[RankRecords]) -> Metrics:
    return Metrics(replace(side, ranks=tuple(ranks)), ("a",), ((0,),), (True,))


@pytest.mark.parametrize("name", ["1f1b", "zb_h1", "zb_v"])
@pytest.mark.parametrize("reduce_ns", [0, 500])
def test_the_parts_are_those_of_the_replay(tmp_path: Path, name: str, reduce_ns: int) -> None:
    step = replayed(name, 3, 6, 1)
    found = rank_parts(recorded(step, tmp_path, reduce_ns), "wall")
    for pp, (parts, times) in enumerate(zip(found.values(), rank_times(step), strict=True)):
        compute = sum(parts[name] for name in ("forward", "backward", "weight_grad"))
        waits = times.warm_up + sum(times.waiting.values()) + times.cool_down
        assert compute == step.busy[pp]
        assert parts["tensor_parallel"] == times.tensor_parallel
        assert parts["idle"] + parts["overhead"] == waits
        assert parts["data_parallel"] == reduce_ns
        assert parts["optimizer"] == MS
        assert sum(parts.values()) == step.makespan + reduce_ns + MS
        assert set(parts) == set(COMPONENTS)


def test_waiting_inside_the_update_until_the_pipelines_end_is_idle(tmp_path: Path) -> None:
    metrics = recorded(replayed("1f1b", 2, 2, 1), tmp_path, 100)
    first, second = metrics.side.ranks
    *actions, reduce, update = second.steps[0].spans
    late = update._replace(wait_ns=300, end_ns=update.end_ns + 300)
    wait = Wait("all_reduce", update.start_ns, update.start_ns + 300)
    step = second.steps[0].model_copy(
        update={"spans": (*actions, reduce, late), "waits": (*second.steps[0].waits, wait), "end_ns": late.end_ns}
    )
    again = rank_parts(metrics_of(metrics.side, [first, second._replace(steps=(step,))]), "wall")
    assert (again[1]["data_parallel"], again[1]["optimizer"]) == (400, MS)
    assert again[0]["data_parallel"] == 100


def test_kinds_of_compute() -> None:
    names = {"0F1": "forward", "2B0": "backward", "1I3": "backward", "0W3": "weight_grad", OPTIMIZER: "optimizer"}
    assert {name: component_of(name) for name in names} == names
    assert component_of(REDUCE_GRAD) is None


@pytest.mark.parametrize("name", ["1f1b", "zb_v"])
def test_replayed_with_its_own_costs_the_step_comes_back(tmp_path: Path, name: str) -> None:
    """The recorded gaps are none, and the phases behind the pipeline follow it."""
    step = replayed(name, 3, 6, 2)
    metrics = recorded(step, tmp_path, 700)
    costs = run_costs(metrics.side.ranks, "wall")
    lists = [[timed.action for timed in rank] for rank in step.ranks]
    again = whole_step(lists, step.rows.stage_to_rank, costs)
    assert costs.gap_ns == 0
    assert again.step_ns == int(step.makespan) + 700 + MS
    assert [rank.total_ns for rank in again.ranks] == [again.step_ns] * 3
    busy = [Fraction(rank.compute_ns + rank.optimizer_ns) for rank in again.ranks]
    assert busy == [step.busy[pp] + MS for pp in range(3)]
    assert again.utilisation == min(busy) / again.step_ns
    assert step.costs.compute(0, Kind.F) > 0
