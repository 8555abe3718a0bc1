"""What recomputation costs and saves: predicted from one calibration against measured, on two ranks with a core each.

    scripts/bench recompute [--quick] [--save] [--only SCHEDULE]

The same plan three times: it forgets nothing, selectively, or all it can. All are run, one after another and once more
in reverse order (planned_runs.py). Goals: step time and peak activation bytes of every rank within 5 % of the
prediction, and so what forgetting costs: the ratio of the steps.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.planned_runs import disturbed, predicted_and_run, times_of
from benchmarks.results import RESULTS, arguments_given, environment, markdown_table, save
from hybrid_runtime.deployment_fields import RecomputeKind

GOAL = 0.05
KINDS: tuple[RecomputeKind, ...] = get_args(RecomputeKind)
CUTS = ["embedding..1.mlp", "2.attn..head"]
SCHEDULES = ("1f1b", "zb_h1")  # with whole backwards, and with I and W apart


def cases_of(schedule: str) -> dict[str, dict[str, Any]]:
    """One deployment for each kind of recomputation."""
    pipeline = {"schedule": schedule, "cuts": CUTS}
    return {
        kind: {"parallel": {"pp_degree": 2}, "pipeline": pipeline | {"recompute": kind}, "search": {"vary": []}}
        for kind in KINDS
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrates, plans, runs, prints the table, and with --save keeps the result. Returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench recompute", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps; says nothing about the goals")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save")
    parser.add_argument("--only", choices=SCHEDULES, help="one schedule")
    options = parser.parse_args(arguments)
    cases = {
        f"{schedule}, {kind}": case
        for schedule in ([options.only] if options.only else SCHEDULES)
        for kind, case in cases_of(schedule).items()
    }
    calibrated = {"parallel": {"pp_degree": 2}, "search": {"vary": ["recompute"]}}
    with tempfile.TemporaryDirectory() as scratch:
        found = predicted_and_run(Path(scratch), cases, 8 if options.quick else 30, calibrated=calibrated)
    result = {"environment": environment(arguments_given(), "recompute"), "cases": with_ratios(found)}
    table = table_of(result["cases"])
    print(table)
    if options.save:
        print(f"saved {save('recompute', result, table, options.results).name}")
    return 0 if all(case["met"] for case in result["cases"].values()) else 1


def with_ratios(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every case with its step as a multiple of the one that forgets nothing, and whether it meets the goals.

    Args:
        cases: "SCHEDULE, KIND" -> a case of `predicted_and_run`.
    """
    found = {}
    for name, case in cases.items():
        none = cases[f"{name.partition(',')[0]}, none"]
        ratios = {
            "predicted_ratio": case["predicted_ns"] / none["predicted_ns"],
            "measured_ratio": sum(case["measured_ns"]) / sum(none["measured_ns"]),
        }
        off = ratios["predicted_ratio"] / ratios["measured_ratio"] - 1
        met = max(abs(error) for error in (case["error"], off, *case["activations_errors"])) <= GOAL
        found[name] = {**case, **ratios, "ratio_error": off, "goal": GOAL, "met": met}
    return found


def table_of(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per schedule and kind."""
    rows = [
        [
            name,
            *times_of(case),
            f"{case['predicted_ratio']:.4f} / {case['measured_ratio']:.4f}",
            f"{100 * case['ratio_error']:+.2f} %",
            "; ".join(" ".join(errors) for errors in case["busy_errors"]),
            " ".join(f"{num_bytes / 1e6:.2f}" for num_bytes in case["activations"]),
            " ".join(f"{100 * error:+.3f} %" for error in case["activations_errors"]),
            f"<= {100 * case['goal']:g} %: {'met' if case['met'] else 'missed'}",
        ]
        for name, case in cases.items()
    ]
    headings = ["plan", "predicted ms", "measured ms", "error", "inside", "step / none, predicted / measured", "off"]
    headings += ["busy % off, ranks; runs", "activations MB, ranks", "error", "goal"]
    return "\n".join([markdown_table(headings, rows), *disturbed(cases)])


if __name__ == "__main__":
    raise SystemExit(main())
