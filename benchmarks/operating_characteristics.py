"""How often the verifier errs: noise of known truth through the real decision rules, against goals.

    scripts/bench operating_characteristics [--quick] [--save] [--only TEXT] [--runs N]

A goal is "met" or "missed" where the whole 95 % interval of the counted rate (Clopper and Pearson) lies on one side of
it, else "open": more --runs would tell. `wobble` is the autocorrelation of the noise from row to row.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.results import RESULTS, arguments_given, environment, markdown_table, save
from benchmarks.simulated import Cell, named_outcomes

RUNS = 2000
CHUNK_RUNS = 250  # of one task for one core; part of what a seed means
ERRORS = ("PASS", "FAIL")
LOOKS = {"one": (50,), "three": (20, 40, 80), "five": (20, 40, 80, 160, 320)}
PAIR_LOOKS = {"12": (12,), "24": (24,), "three": (6, 12, 24), "five": (5, 10, 20, 40, 80)}


class Goal(NamedTuple):
    """A bound, in percent, on how often a cell ends in one way."""

    ending: str
    side: Literal["<=", ">="]
    percent: float

    def state(self, found: Counter[str], runs: int) -> str:
        """Met, missed or open."""
        low, high = (100 * bound for bound in rate_interval(found[self.ending], runs))
        inside = high <= self.percent if self.side == "<=" else low >= self.percent
        outside = low > self.percent if self.side == "<=" else high < self.percent
        return "met" if inside else "missed" if outside else "open"


AT_THE_LIMIT = (Goal("PASS", "<=", 5), Goal("FAIL", "<=", 5), Goal("no_steady_state", "<=", 1))
MUST_PASS, MUST_FAIL = (Goal("PASS", ">=", 95),), (Goal("FAIL", ">=", 95),)
MUST_NOT_DECIDE = (Goal("no_steady_state", ">=", 95),)


def cases() -> dict[str, tuple[Cell, tuple[Goal, ...]]]:
    """Every cell by name, with its goals."""
    return {
        **_range_cases(),
        **_range_looks(),
        **_floor_cases(),
        **_ratio_cases(),
        **_other_cases(),
        **_quantile_cases(),
    }


def _range_cases() -> dict[str, tuple[Cell, tuple[Goal, ...]]]:
    """50 batches: of one step each with independent noise, of ten steps with correlated noise."""
    goals = {0.0: MUST_PASS, 0.5: MUST_PASS, 1.0: AT_THE_LIMIT, 1.5: MUST_FAIL}
    found: dict[str, tuple[Cell, tuple[Goal, ...]]] = {}
    for devices in (3, 8):
        for cv, correlation, rows, length in ((0.01, 0, 50, 1), (0.02, 0, 50, 1), (0.01, 0.5, 500, 10)):
            for truth, goal in goals.items():
                name = f"range N={devices} cv={cv:.0%} wobble={correlation} truth={truth} pp"
                cell = Cell("range", truth, (rows,), cv, devices, correlation, length)
                found[name] = cell, goal if cv == 0.01 or truth == 1 else ()  # the goals are for 1 % noise
    return found


def _range_looks() -> dict[str, tuple[Cell, tuple[Goal, ...]]]:
    """At the limit, single steps as batches, so that the rule must find the length of its batches itself."""
    found: dict[str, tuple[Cell, tuple[Goal, ...]]] = {}
    for devices, correlation, looks in ((3, 0, "three"), (3, 0, "five"), (3, 0.5, "three"), (3, 0.5, "five")):
        name = f"range N={devices} wobble={correlation} at the limit, {looks} looks"
        found[name] = Cell("range", 1, LOOKS[looks], 0.01, devices, correlation), AT_THE_LIMIT
    for devices in (3, 8):
        name = f"range N={devices} wobble=0.5 at the limit, 200 single steps"
        found[name] = Cell("range", 1, (200,), 0.01, devices, 0.5, times=4 if devices == 3 else 1), AT_THE_LIMIT
    return found


def _floor_cases() -> dict[str, tuple[Cell, tuple[Goal, ...]]]:
    return {
        f"floor N=3 wobble={correlation} at the limit, {looks} looks".replace("one looks", "one look"): (
            Cell("floor", 90, LOOKS[looks], 0.01, 3, correlation),
            AT_THE_LIMIT,
        )
        for correlation in (0, 0.5)
        for looks in LOOKS
    }


def _ratio_cases() -> dict[str, tuple[Cell, tuple[Goal, ...]]]:
    """A wobble from step to step over both sides, and, harder, from pair to pair."""
    found: dict[str, tuple[Cell, tuple[Goal, ...]]] = {}
    for pairs, looks in PAIR_LOOKS.items():
        shape = f"{pairs} pairs" if pairs.isdigit() else f"{pairs} looks"
        for correlation, between in ((0, False), (0.5, False), (0.5, True)):
            name = f"ratio wobble={correlation}{' between pairs' if between else ''} at the limit, {shape}"
            cell = Cell("ratio", 100, looks, 0.02, correlation=correlation, between_pairs=between, times=5)
            found[name] = cell, AT_THE_LIMIT
    return found


def _quantile_cases() -> dict[str, tuple[Cell, tuple[Goal, ...]]]:
    """Rounds of eight requests at the limit, alike or slow and fast ones, which may follow each other; and how many it
    takes to pass a p99 that is a fifth below its limit, which 0.36 % of such latencies exceed."""
    found = {}
    for name, truth, rounds in (("median", 50, 40), ("p90", 90, 40), ("p99", 99, 160)):
        for cv, correlation in ((0.0, 0.0), (0.3, 0.0), (0.3, 0.5)):
            times = 12 if name == "median" and correlation else 1
            cell = Cell("quantile", truth, (rounds,), cv, 8, correlation, times=times)
            found[f"quantile {name} rounds {cv:.0%} wobble={correlation:g} at the limit"] = cell, AT_THE_LIMIT
    below = Cell("quantile", 99.64, (560,), 0.0, 8)
    return found | {"quantile p99 a fifth below the limit, 4480 requests": (below, MUST_PASS)}


def _other_cases() -> dict[str, tuple[Cell, tuple[Goal, ...]]]:
    """A/A tests, and truths that move: over the limit, and without being able to turn the answer."""
    return {
        "equivalence wobble=0 at the margin, 24 pairs": (Cell("equivalence", 1, (24,)), AT_THE_LIMIT),
        "equivalence wobble=0.5 at the margin, 24 pairs": (
            Cell("equivalence", 1, (24,), correlation=0.5),
            AT_THE_LIMIT,
        ),
        "equivalence of equal sides, 24 pairs": (Cell("equivalence", 0, (24,)), MUST_PASS),
        "range N=3 truth moves 0.5 to 1.5 pp, 120 steps": (Cell("range", 1, (120,), drift=1), MUST_NOT_DECIDE),
        "range N=3 truth moves 0.1 to 0.4 pp, 120 steps": (Cell("range", 0.25, (120,), drift=0.3), MUST_PASS),
        "ratio moves from 97 to 103 % of the limit, 24 pairs": (Cell("ratio", 100, (24,), drift=6), MUST_NOT_DECIDE),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cells, prints the table, and with --save keeps the result. Returns 1 unless every goal is met."""
    parser = argparse.ArgumentParser(prog="scripts/bench operating_characteristics", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few runs of one cell of each rule, on one core")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save")
    parser.add_argument("--only", default="", help="cells whose name contains this text")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"simulations a cell, default {RUNS}")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chosen = {name: case for name, case in cases().items() if options.only in name}
    runs = max(1, options.runs)
    if options.quick:
        chosen, runs = {name: chosen[name] for name in _first_of_each_rule(chosen)}, min(runs, 200)
    if not chosen:
        parser.error(f"no cell is named like {options.only!r}; without --only the table shows all names")
    start = time.perf_counter()
    counted = count(chosen, runs, options.seed, cores=1 if options.quick else len(os.sched_getaffinity(0)))
    result = {
        "environment": environment(arguments_given(), "operating_characteristics"),
        "seconds": time.perf_counter() - start,
        "runs": runs,
        "cells": {name: _row(case[1], counted[name]) for name, case in chosen.items()},
    }
    table = table_of(result)
    print(table)
    if options.save:
        print(f"saved {save('operating_characteristics', result, table, options.results).name}")
    return 0 if all(cell["state"] in {"met", "-"} for cell in result["cells"].values()) else 1


def _first_of_each_rule(names: Iterable[str]) -> list[str]:
    firsts: dict[str, str] = {}
    for name in names:
        if "limit" in name or "margin" in name:
            firsts.setdefault(name.partition(" ")[0], name)
    return list(firsts.values())


def count(
    chosen: dict[str, tuple[Cell, tuple[Goal, ...]]], runs: int, seed: int, cores: int
) -> dict[str, Counter[str]]:
    """How the runs of every cell ended; the same for any number of cores."""
    places = list(cases())
    tasks = [
        (name, cell, size, (seed, places.index(name), chunk))
        for name, (cell, _) in chosen.items()
        for chunk, size in enumerate(_sizes(runs * cell.times))
    ]
    found = {name: Counter[str]() for name in chosen}
    if cores == 1:
        for name, counted in map(named_outcomes, tasks):
            found[name] += counted
        return found
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        for name, counted in pool.imap_unordered(named_outcomes, tasks):
            found[name] += counted
    return found


def _sizes(runs: int) -> list[int]:
    return [min(CHUNK_RUNS, runs - first) for first in range(0, runs, CHUNK_RUNS)]


def rate_interval(count: int, runs: int) -> tuple[float, float]:
    """Two-sided 95 % interval of a binomial rate (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    low = float(betaincinv(count, runs - count + 1, 0.025)) if count else 0.0
    return low, float(betaincinv(count + 1, runs - count, 0.975)) if count < runs else 1.0


def _row(goals: Sequence[Goal], found: Counter[str]) -> dict[str, Any]:
    states = [goal.state(found, found.total()) for goal in goals]
    return {
        "runs": found.total(),
        "endings": dict(found),
        "goals": [f"{goal.ending} {goal.side} {goal.percent:g} %" for goal in goals],
        "state": next((state for state in ("missed", "open", "met") if state in states), "-"),
    }


def table_of(result: dict[str, Any]) -> str:
    """One row per cell: rates in percent with their 95 % intervals where they matter."""
    rows = []
    for name, cell in result["cells"].items():
        endings, runs = Counter(cell["endings"]), cell["runs"]
        unsteady = endings["no_steady_state"]
        other = runs - sum(endings[ending] for ending in (*ERRORS, "no_steady_state"))
        goal = f"{', '.join(cell['goals'])}: {cell['state']}" if cell["goals"] else "-"
        rows.append(
            [
                name,
                *(_rate(endings[ending], runs) for ending in ERRORS),
                _rate(unsteady, runs),
                f"{100 * other / runs:.1f}",
                goal.replace("no_steady_state", "unsteady"),
            ]
        )
    states = Counter(cell["state"] for cell in result["cells"].values())
    return (
        markdown_table(["truth", "PASS %", "FAIL %", "unsteady %", "other INCONCLUSIVE %", "goal"], rows)
        + f"\n\n{result['runs']} simulations a cell, or a multiple (see the raw file); in brackets 95 % intervals; "
        + f"{result['seconds']:.0f} s. "
        + f"Cells: {states['met']} met, {states['missed']} missed, {states['open']} open, {states['-']} without a goal."
    )


def _rate(count: int, runs: int) -> str:
    low, high = rate_interval(count, runs)
    return f"{100 * count / runs:.1f} ({100 * low:.1f}-{100 * high:.1f})"


if __name__ == "__main__":
    raise SystemExit(main())
