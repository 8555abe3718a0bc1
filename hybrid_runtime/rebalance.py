"""`verify --rebalance`: the run's own records cut its plan anew, and the new plan is run and judged by the same rules.

RUN/               before: plan, records, verdict and reports as of any run
RUN/rebalanced/    after: the same, a run folder of its own
RUN/compare.html   both side by side
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from hybrid_runtime.measure import run_against_baseline
from hybrid_runtime.planner.rebalance import rebalanced
from hybrid_runtime.planner.run_costs import run_costs
from hybrid_runtime.report.compare import compare_page, compare_tables
from hybrid_runtime.report.run_data import read_run
from hybrid_runtime.report.terminal import print_plainly
from hybrid_runtime.run_folder import RunFolder, write_whole
from hybrid_runtime.verdict import Verdict
from hybrid_runtime.verifier.metrics import measure
from hybrid_runtime.verifier.side import load_side


def run_rebalanced(
    folder: RunFolder, console: Console, *, quiet: bool, overrides: Mapping[str, str] | None = None
) -> Verdict | None:
    """Runs the plan that the records of a judged run ask for; None where they ask for no other.

    Raises:
        RunError: as `run_against_baseline`.
        PlanError: the records do not say what every stage costs.
    """
    metrics = measure(load_side(folder.path, "candidate"))
    side = metrics.side
    deployment, plan = rebalanced(side.plan, side.deployment, run_costs(side.ranks, metrics.clock).step)
    if plan is side.plan:
        return None
    return run_against_baseline(deployment, folder.rebalanced, console, quiet=quiet, overrides=overrides, plan=plan)


def show_both(folder: RunFolder, before: Verdict, after: Verdict, console: Console) -> None:
    """Prints before and after, and writes the page of both."""
    runs = read_run(folder.path, before), read_run(folder.rebalanced.path, after)
    write_whole(folder.comparison, compare_page(*runs))
    print_plainly(compare_tables(*runs), console)
