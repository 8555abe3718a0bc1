"""What rank 0 writes of a step: every rank's figures, and nothing invented where something is not known."""

from __future__ import annotations

import itertools
import json
import math
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.deployment import parse_deployment
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_progress import RankNumbers, RankProgress, StepTerms, rank_numbers, step_terms
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.records import PLANTED, TRACE
from hybrid_runtime.report.exports import Exports
from hybrid_runtime.report.progress import MAX_LOADS, ProgressLine, ProgressTail, RankLoad
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.telemetry.recorder import StepSummary
from tests.commands import small

SECOND = 10**9


def told(
    folder: Path,
    numbers: list[RankNumbers],
    *,
    rank: int = 0,
    step: int = 0,
    steps: int = 9,
    terms: StepTerms | None = None,
    purpose: str = TRACE,
) -> list[ProgressLine]:
    settings: dict[str, Any] = {"side": "candidate", "tokens_per_step": 4000, "terminal": False, "quiet": True}
    settings["trained_before"] = 40
    run = RunFolder(folder).create()
    with RankProgress(run, rank=rank, replicas=2, exports=Exports(), steps=steps, **settings) as progress:
        if terms is not None:
            progress.begin(terms)
        progress.show(Order(step, step, purpose=purpose), 2.5, numbers)
    return ProgressTail(run.progress).read_new()


def test_a_line_holds_every_ranks_shares_memory_and_rate(tmp_path: Path) -> None:
    first = rank_numbers(StepSummary(SECOND, SECOND // 2, 2 * SECOND), 1000, 0.25)
    second = rank_numbers(StepSummary(SECOND // 2, SECOND, SECOND), None, 0.25)
    (line,) = told(tmp_path, [first, second])
    assert (line.step, line.steps, line.charted_step, line.loss, line.grad_norm) == (1, 9, 41, 2.5, 0.25)
    assert (line.tokens_per_s, line.step_time_s) == (2000, 2)
    assert line.ranks == (RankLoad(0, 50.0, 25.0, 1000, 1000.0), RankLoad(1, 25.0, 50.0, None, 2000.0))
    assert (line.busiest, line.idlest, line.left_out) == ((0, 50.0), (1, 25.0), 0)


def test_a_bare_step_has_no_shares(tmp_path: Path) -> None:
    (line,) = told(tmp_path, [rank_numbers(StepSummary(None, None, SECOND), None, None)])
    assert line.ranks == (RankLoad(0, None, None, None, 2000.0),)
    assert (line.busiest, line.idlest, line.grad_norm) == (None, None, None)


def test_utilisation_and_learning_rate_follow_from_the_terms(tmp_path: Path) -> None:
    terms = StepTerms(model_flops=600, peak_flops_per_s=1000, learning_rate=lambda trained: trained / 10)
    numbers = [rank_numbers(StepSummary(1, 0, 2 * SECOND), 1, 1.0)]
    (line,) = told(tmp_path, numbers, step=7, terms=terms)
    assert (line.mfu, line.learning_rate) == (0.3, 0.7)
    (line,) = told(tmp_path, numbers, terms=terms._replace(peak_flops_per_s=None, learning_rate=None))
    assert (line.mfu, line.learning_rate) == (None, None)


def test_the_self_tests_work_is_not_the_models(tmp_path: Path) -> None:
    terms = StepTerms(model_flops=600, peak_flops_per_s=1000, learning_rate=lambda trained: 1.0)
    (line,) = told(tmp_path, [rank_numbers(StepSummary(1, 0, SECOND), 1, None)], terms=terms, purpose=PLANTED)
    assert (line.phase, line.tokens_per_s, line.mfu, line.learning_rate) == (PLANTED, 0, None, None)


def test_the_terms_of_a_deployment() -> None:
    values = small(optimizer={"learning_rate": 0.5, "warmup_steps": 2}, workload={"steps": 6})
    deployment = parse_deployment(json.loads(json.dumps(values), parse_float=Decimal), source="test")
    assert deployment.shape is not None
    costs = unit_costs(deployment.shape, microbatch_size=1, sequence_length=16, workload="train")
    plan = make_plan(deployment, costs)
    terms = step_terms(deployment, plan, 10**12)
    assert terms.learning_rate is not None
    assert terms.learning_rate(0) == 0.25
    assert terms.learning_rate(1) == 0.5
    assert terms.mfu(2.0) == terms.model_flops / 2e12
    forward = deployment.model_copy(update={"workload": deployment.workload.model_copy(update={"kind": "forward"})})
    only = step_terms(forward, make_plan(forward, costs), None)
    assert only.learning_rate is None
    assert 3 * only.model_flops == terms.model_flops


def test_a_diverged_norm_is_told(tmp_path: Path) -> None:
    (line,) = told(tmp_path, [rank_numbers(StepSummary(1, 0, SECOND), 1, math.nan)])
    assert line.grad_norm is not None
    assert math.isnan(line.grad_norm)


def test_of_many_ranks_the_rest_is_counted(tmp_path: Path) -> None:
    numbers = [rank_numbers(StepSummary(1000 + k, 0, SECOND), 1, 1.0) for k in range(1000)]
    (line,) = told(tmp_path, numbers)
    assert len(line.ranks) <= MAX_LOADS
    assert len(line.ranks) + line.left_out == 1000
    assert {0, 999} <= {load.rank for load in line.ranks}


def test_an_estimate_that_was_too_low_grows(tmp_path: Path) -> None:
    (line,) = told(tmp_path, [rank_numbers(StepSummary(1, 0, SECOND), 1, 1.0)], step=9)
    assert (line.step, line.steps) == (10, 18)


@pytest.mark.alone
def test_telling_costs_little(tmp_path: Path) -> None:
    """Rank 0 does it between steps, while all others wait: some 0.2 ms with 64 ranks on two old cores."""
    numbers = [rank_numbers(StepSummary(1000 + k, 0, SECOND), 1, 1.0) for k in range(64)]
    settings: dict[str, Any] = {"side": "candidate", "tokens_per_step": 1, "terminal": False, "quiet": True}
    seconds = itertools.count()
    costs_s = []
    with RankProgress(
        RunFolder(tmp_path).create(), rank=0, replicas=1, exports=Exports(), steps=200,
        clock=lambda: float(next(seconds)), **settings,
    ) as progress:  # fmt: skip
        for step in range(200):
            before_s = time.thread_time()
            progress.show(Order(step, step), 2.5, numbers)
            costs_s.append(time.thread_time() - before_s)
    assert sorted(costs_s)[100] < 0.002


def test_short_steps_of_many_ranks_are_not_all_told_rank_by_rank(tmp_path: Path) -> None:
    numbers = [rank_numbers(StepSummary(1000 + k, 0, SECOND), 1, 1.0) for k in range(64)]
    settings: dict[str, Any] = {"side": "candidate", "tokens_per_step": 1, "terminal": False, "quiet": True}
    run, now_s = RunFolder(tmp_path).create(), [0.0]
    with RankProgress(
        run, rank=0, replicas=1, exports=Exports(), steps=9, clock=lambda: now_s[0], **settings
    ) as progress:  # fmt: skip
        for step, now_s[0] in enumerate((0.0, 0.03, 0.063, 0.064, 0.1)):
            progress.show(Order(step, step), 2.5, numbers)
    lines = ProgressTail(run.progress).read_new()
    assert [len(line.ranks) for line in lines] == [64, 0, 0, 64, 0]
    assert [line.left_out for line in lines] == [0, 64, 64, 0, 64]
    assert [line.busiest for line in lines] == [lines[0].busiest] * 5


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    assert told(tmp_path, [rank_numbers(StepSummary(1, 0, SECOND), 1, 1.0)], rank=1) == []
    assert not RunFolder(tmp_path).progress.exists()
