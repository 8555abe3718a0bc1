"""`plan --try K`: the best K plans really run for a few steps, and the fastest measured one is chosen.

All pairs of predicted and measured step time stay in the plan (`predicted.alternatives`), so that anybody can see
whether the prediction would have chosen as well. Each trial leaves an ordinary run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError, RunError
from hybrid_runtime.launcher import Rendezvous
from hybrid_runtime.measure import run_alone
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.evaluate import Evaluated
from hybrid_runtime.planner.given import resolved
from hybrid_runtime.planner.planned import Planned
from hybrid_runtime.predicted import Alternative
from hybrid_runtime.run_folder import RunFolder, new_run_folder
from hybrid_runtime.verifier.metrics import measure
from hybrid_runtime.verifier.side import load_side

WARM_UP_STEPS, MEASURED_STEPS = 5, 15


def try_plans(deployment: Deployment, planned: Planned, count: int, console: Console, *, quiet: bool) -> Planned:
    """Runs the best plans one after another.

    Returns:
        What was planned, with the fastest measured plan as the chosen one.

    Raises:
        PlanError: none of them could run.
    """
    tried: list[tuple[int | None, str, Evaluated]] = []
    for number, found in enumerate(planned.best[:count]):
        folder = new_run_folder(f"{deployment.name[:80]}-try{number + 1}")
        measured_ns, words = _run(deployment, planned.plan_of(found), folder, console, quiet=quiet)
        tried.append((measured_ns, words, found))
    running = [(measured_ns, found) for measured_ns, _, found in tried if measured_ns is not None]
    if not running:
        raise PlanError(f"none of {len(tried)} plans could run: {tried[0][1]}; mend that, or plan without --try")
    fastest, chosen = min(running, key=lambda pair: pair[0])
    return _chosen(planned, tried, chosen, fastest)


def _run(
    deployment: Deployment, plan: Plan, folder: RunFolder, console: Console, *, quiet: bool
) -> tuple[int | None, str]:
    """Median step time of a few steps in nanoseconds, or None and why it could not run."""
    few = deployment.model_copy(
        update={
            "workload": deployment.workload.model_copy(update={"steps": WARM_UP_STEPS + MEASURED_STEPS}),
            "measurement": deployment.measurement.model_copy(update={"warmup_steps": WARM_UP_STEPS}),
        }
    )
    try:
        run_alone(resolved(few, plan, "a tried plan"), folder, Rendezvous(), console, quiet=quiet, plan=plan)
    except (PlanError, RunError) as problem:
        return None, f"did not run: {problem}"
    return int(measure(load_side(folder.path, "candidate")).bare.median_step_ns), f"run folder {folder.path}"


def _chosen(
    planned: Planned, tried: Sequence[tuple[int | None, str, Evaluated]], chosen: Evaluated, fastest_ns: int
) -> Planned:
    others = [
        Alternative(
            description=str(found.layout),
            step_time_ns=found.step_ns,
            peak_bytes=found.peak_bytes,
            measured_ns=measured_ns,
            why_not=_why(found is chosen, measured_ns, fastest_ns, words),
        )
        for measured_ns, words, found in tried
    ]
    untried = [
        other
        for other in (planned.plan.predicted.alternatives if planned.plan.predicted else ())
        if other.description not in {one.description for one in others}
    ]
    return replace(planned, plan=planned.plan_of(chosen, (*others, *untried)))


def _why(is_chosen: bool, measured_ns: int | None, fastest_ns: int, words: str) -> str:
    if measured_ns is None:
        return words
    if is_chosen:
        return f"chosen: the fastest when tried; {words}"
    return f"{100 * (measured_ns / fastest_ns - 1):.1f} % slower when tried; {words}"
