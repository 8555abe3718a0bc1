"""Run folders for the report tests: the synthetic ones, and one with as many spans as a real pipeline leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybrid_runtime.plan import Plan, read_plan
from hybrid_runtime.records import OPTIMIZER, REDUCE_GRAD, RankRecords, Span, StepRecord, Wait, read_side, to_line
from hybrid_runtime.report.run_data import Run, read_run
from hybrid_runtime.verdict import Verdict
from hybrid_runtime.verifier.judge import judge, write_verdict
from tests.verifier.synthetic import MS, Synthetic, deployment, noisy, write_run

TARGETS = {"compute_balance_pp": 1, "memory_balance_pp": 1, "utilisation_percent": 90, "latency_reduction_percent": 30}
MICROBATCHES = 16


def small_run(folder: Path, **changes: Any) -> Run:
    """Three pipeline ranks against a baseline, judged; `changes` exchange fields of the verdict."""
    candidate = noisy([10 * MS, 10 * MS, 11 * MS], 0.01, 1, steps=20, block_steps=5, memory_bytes=[900, 1000, 1100])
    baseline = noisy([20 * MS] * 3, 0.01, 2, steps=20, block_steps=5)
    return judged(written(folder, candidate, baseline), **changes)


def large_run(folder: Path, ranks: int = 8, steps: int = 200) -> Run:
    """As many ranks and measured steps, with two spans, two receives and two collectives per microbatch."""
    candidate = noisy([160 * MS] * ranks, 0.01, 1, steps=steps, block_steps=10, wait_ns=20 * MS)
    baseline = noisy([170 * MS] * ranks, 0.01, 2, steps=steps, block_steps=10)
    written(folder, candidate, baseline)
    plan = read_plan(folder / "plan.json")
    plan = plan.model_copy(update={"actions": tuple(map(_actions, range(ranks)))})
    (folder / "plan.json").write_text(plan.to_json())
    for rank in read_side(folder):
        _rewrite(rank, plan)
    return judged(folder)


def written(folder: Path, candidate: Synthetic, baseline: Synthetic) -> Path:
    """A run folder that was not judged yet."""
    deployed = deployment(
        candidate.shape, targets=TARGETS, baseline={"kind": "pp_only"}, measurement={"batch_steps": 1},
        model={"preset": "tiny", "num_layers": 8},
    )  # fmt: skip
    return write_run(folder, candidate, deployed, baseline=baseline, baseline_deployed=deployed)


def judged(folder: Path, **changes: Any) -> Run:
    """Judges a run folder, leaves the verdict in it and reads it; `changes` exchange fields of what is returned."""
    verdict = judge(folder)
    write_verdict(verdict, folder / "verdict.json")
    return read_run(folder, Verdict.model_validate(verdict.model_dump() | changes))


def _actions(stage: int) -> tuple[str, ...]:
    return tuple(f"{stage}{kind}{microbatch}" for microbatch in range(MICROBATCHES) for kind in "FB")


def _rewrite(rank: RankRecords, plan: Plan) -> None:
    header = rank.header.model_copy(update={"plan_fingerprint": plan.fingerprint})
    steps = [_many_spans(step, rank.header.pp) if step.phase == "measure" else step for step in rank.steps]
    assert rank.footer is not None
    rank.path.write_text("".join(map(to_line, (header, *steps, rank.footer))))


def _many_spans(step: StepRecord, stage: int) -> StepRecord:
    """Two actions per microbatch, one after the other; a receive before each and a collective at its end."""
    length = (step.end_ns - step.start_ns) // (2 * MICROBATCHES + 4)
    spans: list[Span] = []
    waits: list[Wait] = []
    for number in range(2 * MICROBATCHES):
        kind, microbatch = "FB"[number % 2], number // 2
        start = step.start_ns + number * length
        done = start + length
        spans.append(Span(f"{stage}{kind}{microbatch}", start + length // 5, done, -1, length // 8))
        waits.append(Wait(f"{stage}RECV_{kind}{microbatch}", start, start + length // 5))
        waits.append(Wait("all_reduce", done - length // 8, done))
    reduced = step.start_ns + (2 * MICROBATCHES + 2) * length
    spans.append(Span(REDUCE_GRAD, reduced, reduced + length, -1, 0))
    spans.append(Span(OPTIMIZER, reduced + length, reduced + 2 * length, -1, 0))
    return step.model_copy(update={"spans": tuple(spans), "waits": tuple(waits)})
