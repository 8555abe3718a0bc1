"""The automatic scheduler: how close it comes to the lower bound, how fast, with how even a memory.

    scripts/bench auto [--quick] [--save] [--only NAME]

F : I : W = 1 : 1.15 : 0.9, hops of 2 % of F, two equal stages per rank (V), one microbatch of activations more than
pipeline ranks. Times are of the search; compiling its loops, once per machine, is measured apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, arguments_given, environment, markdown_table, save
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.auto.search import SearchResult, search
from hybrid_runtime.schedule.registry import find_schedule, generate
from hybrid_runtime.schedule.replay import replay_rows
from hybrid_runtime.schedule.rows import to_rows
from hybrid_runtime.schedule.step_costs import Hop, StepCosts, activation_bytes

SHARES = {Kind.F: Fraction(1), Kind.I: Fraction("1.15"), Kind.W: Fraction("0.9")}
BYTES = 1 << 20  # of a stage's activations of one microbatch; any number will do


@dataclass(frozen=True)
class Case:
    """One pipeline and what must be reached: a bubble (0 to 1) within a time."""

    name: str
    pp_degree: int
    num_microbatches: int
    most_s: float
    above_bound: Fraction | None = None
    bubble: Fraction | None = None

    def goal(self, bound_bubble: Fraction) -> Fraction:
        """The largest bubble that will do."""
        return self.bubble if self.bubble is not None else bound_bubble + (self.above_bound or 0)


CASES = (
    Case("p3", 3, 8, 10, above_bound=Fraction(1, 1000)),
    Case("p4", 4, 12, 10, above_bound=Fraction(1, 1000)),
    Case("p8", 8, 32, 60, bubble=Fraction(4, 100)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, prints the table, and with --save keeps the result. Returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench auto", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest case only")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save")
    parser.add_argument("--only", choices=[case.name for case in CASES], help="one case")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    compile_s, _ = timed(Case("compile", 2, 2, 60), options.seed)
    result: dict[str, Any] = {"environment": environment(arguments_given(), "auto"), "compile_s": compile_s}
    chosen = [case for case in CASES if options.only in (None, case.name)][: 1 if options.quick else None]
    result["replay_actions_per_s"] = replay_rate()
    result["cases"] = {case.name: measure(case, options.seed) for case in chosen}
    table = table_of(result)
    print(table)
    if options.save:
        print(f"saved {save('auto', result, table, options.results).name}")
    return 0 if all(case["met"] for case in result["cases"].values()) else 1


def timed(case: Case, seed: int) -> tuple[float, SearchResult]:
    """Seconds of a search, and what it found."""
    stages = range(2 * case.pp_degree)
    costs = StepCosts(
        {(stage, kind): share / 2 for stage in stages for kind, share in SHARES.items()},
        hop=Hop(Fraction(2, 100)),
        action_bytes=activation_bytes([BYTES] * len(stages)),
    )
    start = time.perf_counter()
    found = search(case.pp_degree, case.num_microbatches, costs, 2 * BYTES * (case.pp_degree + 1), seed, case.most_s)
    return time.perf_counter() - start, found


def replay_rate() -> float:
    """Compute actions that the replay walks in a second of one core, after its first run; the best of five."""
    rows = to_rows(generate("zb_v", 8, 2000, "train"), find_schedule("zb_v").place(8))
    num_actions = sum(action.kind.is_compute for action in rows.actions)
    costs = StepCosts({(stage, kind): 10 + stage for stage in range(16) for kind in SHARES}, hop=Hop(1))
    seconds = []
    for _ in range(6):
        start = time.process_time()
        replay_rows(rows, costs)
        seconds.append(time.process_time() - start)
    return num_actions / min(seconds[1:])


def measure(case: Case, seed: int) -> dict[str, Any]:
    """One case."""
    search_s, found = timed(case, seed)
    known = {schedule.name: float(schedule.bubble) for schedule in found.portfolio if schedule.fits}
    even = len(set(found.best.peak_bytes)) == 1
    return {
        "pp_degree": case.pp_degree,
        "num_microbatches": case.num_microbatches,
        "search_s": search_s,
        "schedule": found.best.name,
        "bubble": float(found.best.bubble),
        "bound_bubble": float(found.bound_bubble),
        "goal_bubble": float(case.goal(found.bound_bubble)),
        "goal_s": case.most_s,
        "portfolio": known,
        "peak_microbatches": [peak / (2 * BYTES) for peak in found.best.peak_bytes],
        "met": found.best.bubble <= case.goal(found.bound_bubble) and search_s <= case.most_s and even,
    }


def table_of(result: dict[str, Any]) -> str:
    """One row per case."""
    rows = [
        [
            f"p={case['pp_degree']}, m={case['num_microbatches']}",
            f"{100 * case['portfolio']['zb_v']:.2f}",
            f"{100 * case['portfolio']['greedy']:.2f}",
            f"{100 * case['bubble']:.2f}",
            f"{100 * case['bound_bubble']:.2f}",
            f"{case['search_s']:.1f}",
            " ".join(f"{peak:g}" for peak in case["peak_microbatches"]),
            f"<= {100 * case['goal_bubble']:.2f} % in {case['goal_s']:g} s: {'met' if case['met'] else 'missed'}",
        ]
        for case in result["cases"].values()
    ]
    rate = result["replay_actions_per_s"] / 1e6
    header = ["case", "ZB-V %", "greedy %", "searched %", "bound %", "s", "peaks, microbatches", "goal"]
    return (
        markdown_table(header, rows)
        + f"\n\nCompiling or loading the loops: {result['compile_s']:.1f} s. Replay: {rate:.1f} million actions/s."
    )


if __name__ == "__main__":
    raise SystemExit(main())
