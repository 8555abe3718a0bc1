"""`verify --rebalance`: the run's own records cut its plan anew, and the new plan is run and judged by the same rules.

RUN/               before: plan, records, verdict and reports as of any run
RUN/rebalanced/    after: the same, a run folder of its own
RUN/compare.html   both side by side

A plan of the Llama family is solved again, inside units too (`planner/replan.py`); of a user's own units, and of lists
from a file, borders move between units (`planner/rebalance.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.fingerprint import fingerprint
from hybrid_runtime.measure import run_against_baseline
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.given import resolved
from hybrid_runtime.planner.rebalance import rebalanced
from hybrid_runtime.planner.recorded import Evidence
from hybrid_runtime.planner.replan import replan, same_work
from hybrid_runtime.planner.run_costs import run_costs
from hybrid_runtime.report.compare import compare_page, compare_tables
from hybrid_runtime.report.run_data import read_run
from hybrid_runtime.report.terminal import print_plainly
from hybrid_runtime.run_folder import RunFolder, write_whole
from hybrid_runtime.schedule.choose import is_file
from hybrid_runtime.verdict import Verdict
from hybrid_runtime.verifier.metrics import Metrics, measure
from hybrid_runtime.verifier.side import Side, load_side


def run_rebalanced(
    folder: RunFolder, console: Console, *, quiet: bool, overrides: Mapping[str, str] | None = None
) -> Verdict | None:
    """Runs the plan that the records of a judged run ask for; None where they ask for no other.

    Raises:
        RunError: as `run_against_baseline`.
        PlanError: the records do not say what every stage costs.
    """
    metrics = measure(load_side(folder.path, "candidate"))
    deployment, plan = _anew(metrics)
    if same_work(plan, metrics.side.plan):
        return None
    return run_against_baseline(deployment, folder.rebalanced, console, quiet=quiet, overrides=overrides, plan=plan)


def _anew(metrics: Metrics) -> tuple[Deployment, Plan]:
    side = metrics.side
    plan, deployment = side.plan, side.deployment
    costs = run_costs(side.ranks, metrics.clock).step
    if deployment.shape is None or is_file(plan.schedule):
        return rebalanced(plan, deployment, costs)
    after = replan(plan, deployment, costs, _peaks(side), evidence=Evidence(fingerprint=_fingerprint(side)))
    return resolved(deployment, after, "the rebalanced plan"), after


def _peaks(side: Side) -> list[int]:
    """Bytes that the ranks of every pipeline rank held at most: as the allocator counts them, else the byte ledger."""
    peaks = [0] * side.plan.pp_degree
    for rank in side.ranks:
        for step in rank.steps:
            held = step.memory.allocated_peak or step.memory.ledger_peak or 0
            peaks[rank.header.pp] = max(peaks[rank.header.pp], held)
    return peaks


def _fingerprint(side: Side) -> dict[str, str]:
    header = side.ranks[0].header
    return fingerprint(
        header.machine,
        header.versions,
        host=header.host.name,
        device=header.device.name,
        threads_per_rank=header.host.threads_per_rank,
    )


def show_both(folder: RunFolder, before: Verdict, after: Verdict, console: Console) -> None:
    """Prints before and after, and writes the page of both."""
    runs = read_run(folder.path, before), read_run(folder.rebalanced.path, after)
    write_whole(folder.comparison, compare_page(*runs))
    print_plainly(compare_tables(*runs), console)
