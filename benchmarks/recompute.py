"""What recomputation costs and saves: predicted from one calibration against measured, on two ranks with a core each.

    scripts/bench recompute [--quick] [--save] [--only SCHEDULE] [--blocks N]

The same plan three times: it forgets nothing, selectively, or all it can. The three take turns in the same processes,
a few steps each (blocks.py), so that a drift of the machine hits all. A step is its recorded window, which is what is
predicted: the barrier before it and the figures exchanged after it are none of the plan's. Goals, each within 5 %:
the predicted step; what forgetting costs, that is the ratio to the step that forgets nothing; the activations' peak
bytes of every rank. Times are judged as the verifier judges that two sides are equal: PASS where the whole interval
lies within 5 %.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from benchmarks.blocks import Timing, measure_sides
from benchmarks.calibrated_plans import calibrate_and_plan, plan_file
from benchmarks.ours import build_parts, stepper
from benchmarks.ranks import run_ranks
from benchmarks.results import RESULTS, arguments_given, environment, markdown_table, save
from hybrid_runtime.deployment import load_deployment
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.plan import read_plan
from hybrid_runtime.predicted import PredictedRank, PredictedStep
from hybrid_runtime.records import RankRecords, read_side
from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decide_ratio import decide_equivalence
from hybrid_runtime.verifier.metrics import wall_compute_ns
from hybrid_runtime.verifier.side import is_compute

GOAL = Fraction(5, 100)
KINDS: tuple[RecomputeKind, ...] = get_args(RecomputeKind)
CUTS = ["embedding..1.mlp", "2.attn..head"]
SCHEDULES = ("1f1b", "zb_h1")  # with whole backwards, and with I and W apart


def cases_of(schedule: str) -> dict[str, dict[str, Any]]:
    """One deployment for each kind of recomputation."""
    pipeline = {"schedule": schedule, "cuts": CUTS}
    return {kind: {"parallel": {"pp_degree": 2}, "pipeline": pipeline | {"recompute": kind}} for kind in KINDS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrates, plans, measures, prints the table, and with --save keeps it. Returns 1 unless every goal is met."""
    parser = argparse.ArgumentParser(prog="scripts/bench recompute", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps; says nothing about the goals")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save")
    parser.add_argument("--only", choices=SCHEDULES, help="one schedule")
    parser.add_argument("--blocks", type=int, default=16, help="blocks of each kind")
    options = parser.parse_args(arguments)
    timing = Timing(3, 2, 0, 1) if options.quick else Timing(10, options.blocks, 1, 2)
    result: dict[str, Any] = {"environment": environment(arguments_given(), "recompute"), "cases": {}}
    schedules = [options.only] if options.only else SCHEDULES
    cases = {f"{schedule}, {kind}": case for schedule in schedules for kind, case in cases_of(schedule).items()}
    with tempfile.TemporaryDirectory() as scratch:
        calibrated = {"parallel": {"pp_degree": 2}, "search": {"vary": ["recompute"]}}
        files = calibrate_and_plan(Path(scratch), cases, steps=8, calibrated=calibrated)
        for schedule in schedules:
            found = _measured({kind: files[f"{schedule}, {kind}"] for kind in KINDS}, timing)
            result["cases"] |= {f"{schedule}, {kind}": case for kind, case in found.items()}
            print(f"{schedule}: done", flush=True)
    table = table_of(result["cases"])
    print(table)
    if options.save:
        print(f"saved {save('recompute', result, table, options.results).name}")
    return 0 if all(case["met"] for case in result["cases"].values()) else 1


def _measured(files: Mapping[str, Path], timing: Timing) -> dict[str, dict[str, Any]]:
    """The three plans of a schedule, by kind."""
    run_ranks(2, measure_rank, {kind: str(file) for kind, file in files.items()}, timing)
    predicted = {kind: _predicted(file) for kind, file in files.items()}
    ranks, steps_s = {}, {}
    for kind, file in files.items():
        records = {one.header.pp: one for one in read_side(_records(file))}
        steps_s[kind] = windows_s(list(records.values()), timing)
        ranks[kind] = [rank_errors(rank, records[rank.pp_rank]) for rank in predicted[kind].ranks]
    predicted_ns = {kind: step.step_time.p50_ns for kind, step in predicted.items()}
    return judged(predicted_ns, steps_s, ranks)


def windows_s(ranks: Sequence[RankRecords], timing: Timing) -> list[float]:
    """By block, without the steps in which it settles: the median window, each that of its slowest rank, in seconds."""
    windows_ns = [
        max(step.end_ns - step.start_ns for step in row)
        for row in zip(*(rank.measured() for rank in ranks), strict=True)
    ]
    length = timing.settle_steps + timing.block_steps
    starts = range(0, len(windows_ns), length)
    return [median(windows_ns[start + timing.settle_steps : start + length]) / 1e9 for start in starts]


def measure_rank(rank: int, files: Mapping[str, str], timing: Timing) -> None:
    """One rank of all three plans; leaves their records behind."""
    parts = {
        kind: build_parts(load_deployment(Path(file)), _records(Path(file)), torch.device("cpu"))
        for kind, file in files.items()
    }
    for kind, file in files.items():
        if parts[kind].plan.actions != read_plan(plan_file(Path(file))).actions:
            raise RuntimeError(f"{kind}: what is measured is not what was planned")
    steps = {kind: stepper(one, warmup_steps=timing.warmup_steps, watched=True) for kind, one in parts.items()}
    measure_sides(steps, timing, "cpu")
    for one in parts.values():
        one.recorder.finish()


def _records(file: Path) -> Path:
    return file.with_suffix(".records")


def _predicted(file: Path) -> PredictedStep:
    predicted = read_plan(plan_file(file)).predicted
    assert predicted is not None
    return predicted


def rank_errors(predicted: PredictedRank, records: RankRecords) -> dict[str, Any]:
    """Of one pipeline rank, busy nanoseconds and most bytes of activations, and predicted / measured - 1 of both."""
    busy_ns = median(
        wall_compute_ns([span for span in step.spans if is_compute(span.name)]) for step in records.measured()
    )
    num_bytes = max(step.memory.activations_peak or 0 for step in records.steps)
    return {
        "busy_ns": busy_ns,
        "busy_error": (predicted.time.compute_ns + predicted.time.optimizer_ns) / busy_ns - 1,
        "activations": num_bytes,
        "activations_error": predicted.memory.activations / num_bytes - 1,
    }


def judged(
    predicted_ns: Mapping[str, int],
    steps_s: Mapping[str, Sequence[float]],
    ranks: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """What was predicted and measured, by kind, and whether it is within the goals.

    Args:
        steps_s: by block, of which those of the same number were neighbours.
        ranks: of every pipeline rank, `rank_errors`.
    """
    found = {}
    for kind, of_blocks in steps_s.items():
        to_none = [Fraction(step) / Fraction(none) for step, none in zip(of_blocks, steps_s["none"], strict=True)]
        predicted_ratio = Fraction(predicted_ns[kind], predicted_ns["none"])
        step = _equal([predicted_ns[kind] / (Fraction(one) * 10**9) for one in of_blocks])
        cost = _equal([predicted_ratio / one for one in to_none])
        bytes_met = all(abs(rank["activations_error"]) <= GOAL for rank in ranks[kind])
        found[kind] = {
            "predicted_ns": predicted_ns[kind],
            "steps_s": list(of_blocks),
            "step": step,
            "predicted_ratio": float(predicted_ratio),
            "measured_ratio": float(predicted_ratio) / (1 + cost["error"]),
            "cost": cost,
            "ranks": list(ranks[kind]),
            "met": bytes_met and {step["verdict"], cost["verdict"]} == {Outcome.PASS.value},
        }
    return found


def _equal(ratios: Sequence[Fraction]) -> dict[str, Any]:
    """Predicted / measured - 1 with its interval, and whether that lies within the goal."""
    decision = decide_equivalence(ratios, GOAL)
    error, low, high = (float(value) - 1 for value in (decision.point, decision.lower, decision.upper))
    return {"error": error, "low": low, "high": high, "verdict": decision.outcome.value, "reason": decision.reason}


def table_of(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per schedule and kind; errors are predicted / measured - 1."""
    rows = [
        [
            name,
            f"{case['predicted_ns'] / 1e6:.1f}",
            f"{1e3 * median(case['steps_s']):.1f}",
            _error(case["step"]),
            f"{case['predicted_ratio']:.3f}",
            f"{case['measured_ratio']:.3f}",
            _error(case["cost"]) if not name.endswith("none") else "",
            " ".join(f"{100 * rank['busy_error']:+.1f}" for rank in case["ranks"]),
            " ".join(f"{rank['activations'] / 1e6:.2f}" for rank in case["ranks"]),
            " ".join(f"{100 * rank['activations_error']:+.2f}" for rank in case["ranks"]),
            f"5 %: {'met' if case['met'] else 'not met'}",
        ]
        for name, case in cases.items()
    ]
    step = ["predicted ms", "measured ms", "error %"]
    ratio = ["step / none, predicted", "measured", "error %"]
    of_ranks = ["ranks' busy, error %", "activations MB", "error %"]
    return markdown_table(["plan", *step, *ratio, *of_ranks, "goals"], rows)


def _error(found: Mapping[str, Any]) -> str:
    error, low, high = (f"{100 * found[name]:+.2f}" for name in ("error", "low", "high"))
    return f"{error} [{low}, {high}] {found['verdict']}" + (f" ({found['reason']})" if found["reason"] else "")


if __name__ == "__main__":
    raise SystemExit(main())
