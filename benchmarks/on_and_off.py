"""What a part of the runtime costs: the same training with it on and off, in turn in the same processes (blocks.py).

The time of a step with it over that without is judged as the verifier judges two sides: Student's t on the log-ratios
of neighbouring blocks, PASS only where the whole interval lies within the goal, FAIL only where it lies beyond.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.blocks import Timing, combine
from benchmarks.cases import Case, Sizes, make_deployment, prepare
from benchmarks.options import cases_here
from benchmarks.ranks import run_ranks
from benchmarks.results import arguments_given, environment, markdown_table, save
from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decide_ratio import decide_ratio

ON, OFF = "on", "off"
MeasureRank = Callable[..., dict[str, Any]]  # (rank, deployment, folder, timing, device) -> answer of `measure_sides`
Judge = Callable[[Case, Sequence[Mapping[str, Any]]], dict[str, Any]]
Column = Callable[[Mapping[str, Any]], str]


def bench(
    name: str,
    options: argparse.Namespace,
    sizes: Sizes,
    timing: Timing,
    cases: Sequence[Case],
    measure_rank: MeasureRank,
    *,
    steps: int = 1,
    columns: Mapping[str, Column] | None = None,
    judge: Judge | None = None,
) -> int:
    """Runs the cases, prints the table, and with --save keeps the result. Returns 1 unless every goal is met.

    Args:
        options: of `options.parser_of`.
        cases: each with its goal, the most that the ratio may be.
        measure_rank: measures sides "on" and "off"; what its answer says beside them is kept, a list over the ranks.
        steps: of the training in one step of `measure_rank`; the table shows the time of one.
        columns: more of the table: heading -> cell of a case.
        judge: makes figures of all ranks' answers, and says whether the goal is met; default: `judged`.
    """
    result: dict[str, Any] = {"environment": environment(arguments_given(), name), "cases": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, sizes)
        for case in cases_here(options, cases):
            deployment = make_deployment(case, sizes, folder, options.device)
            given = (deployment, folder, timing, options.device)
            ranks = run_ranks(case.world_size, measure_rank, *given, device=options.device)
            result["cases"][case.name] = (judge or judged)(case, ranks)
            print(f"{case.name}: done", flush=True)
    table = table_of(result["cases"], steps, columns or {})
    print(table)
    if options.save:
        print(f"saved {save(name, result, table, options.results).name}")
    return 0 if all(case["met"] for case in result["cases"].values()) else 1


def judged(case: Case, ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All ranks' answers -> figures of both sides, the ratio with its interval, and whether the goal is met."""
    assert case.goal is not None
    figures = combine(ranks)
    on, off = (figures["sides"][side]["step_time_s_of_blocks"] for side in (ON, OFF))
    ratios = [Fraction(one) / Fraction(other) for one, other in zip(on, off, strict=True)]
    decision = decide_ratio(ratios, Fraction(str(case.goal)))
    beside = {key: [rank[key] for rank in ranks] for key in ranks[0] if key not in ("losses", "blocks")}
    return {
        **figures,
        **beside,
        "metric": "step_time_ratio",
        "goal": case.goal,
        "ratio": {name: float(getattr(decision, name)) for name in ("point", "lower", "upper")},
        "verdict": decision.outcome.value,
        "reason": decision.reason,
        "met": decision.outcome is Outcome.PASS,
    }


def judged_by_account(case: Case, ranks: Sequence[Mapping[str, Any]], costs: Iterable[Fraction]) -> dict[str, Any]:
    """As `judged`; the goal is met by what is accounted for, unless the measured ratio contradicts it.

    Args:
        costs: of steps, what is accounted for as a part of the step.
    """
    assert case.goal is not None
    figures = judged(case, ranks)
    decision = decide_ratio([1 + cost for cost in costs], Fraction(str(case.goal)))
    share = {name: float(getattr(decision, name)) - 1 for name in ("point", "lower", "upper")}
    met = decision.outcome is Outcome.PASS and figures["verdict"] != Outcome.FAIL.value
    return figures | {"share": share, "share_verdict": decision.outcome.value, "met": met}


def account_text(case: Mapping[str, Any]) -> str:
    """A case of `judged_by_account` in the table."""
    share = {name: f"{100 * value:.3f}" for name, value in case["share"].items()}
    return f"{share['point']} % [{share['lower']}, {share['upper']}]: {case['share_verdict']}"


def table_of(cases: Mapping[str, Any], steps: int, columns: Mapping[str, Column]) -> str:
    """One row per case."""
    rows = []
    for name, case in cases.items():
        on, off, ratio, cpu = case["sides"][ON], case["sides"][OFF], case["ratio"], case["cpu_ratio"]
        rows.append(
            [
                name,
                *(cell(case) for cell in columns.values()),
                f"{on['step_time_s'] / steps:.4f}",
                f"{off['step_time_s'] / steps:.4f}",
                f"{ratio['point']:.4f} [{ratio['lower']:.4f}, {ratio['upper']:.4f}]",
                f"{cpu['median']:.4f} ({cpu['minimum']:.4f}-{cpu['maximum']:.4f})",
                f"<= {case['goal']}: {case['verdict']}" + (f" ({case['reason']})" if case["reason"] else ""),
            ]
        )
    header = ["case", *columns, "step on s", "step off s", "step on / off", "CPU on / off", "goal"]
    return markdown_table(header, rows)
