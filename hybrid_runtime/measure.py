"""Runs a deployment, alone or against its baselines, and has the files judged. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console

from hybrid_runtime.deployment import BaselineKind, Deployment
from hybrid_runtime.errors import UsageError
from hybrid_runtime.launcher import Rendezvous
from hybrid_runtime.plan import Plan
from hybrid_runtime.prediction_history import note_prediction
from hybrid_runtime.report.exports import Exports
from hybrid_runtime.report.progress_view import ProgressFollower
from hybrid_runtime.report.write import write_reports
from hybrid_runtime.run_folder import RunFolder, write_whole
from hybrid_runtime.sampling import Conductor
from hybrid_runtime.sides import Sides, empty
from hybrid_runtime.turns import CANDIDATE, stop
from hybrid_runtime.verdict import Verdict, overridden
from hybrid_runtime.verifier.judge import judge, write_verdict


def run_alone(
    deployment: Deployment,
    folder: RunFolder,
    rendezvous: Rendezvous,
    console: Console,
    *,
    quiet: bool,
    exports: Exports | None = None,
    plan: Plan | None = None,
    resume: str | None = None,
) -> Verdict | None:
    """Runs the candidate only; claims that need a baseline stay INCONCLUSIVE(not_measured).

    Args:
        plan: what the ranks follow, for which `deployment` was resolved (`planner.given`); None lets them plan.
        resume: 'latest', 'auto' (the latest if there is one) or a checkpoint, from which the training goes on.

    Of several machines, which share the run folder, the first shows the progress and judges; the others return None.

    Raises:
        RunError: a rank failed; names rank, stage, step and action.
        Preempted: stopped, with a checkpoint to go on from.
    """
    _prepare(folder, deployment, rendezvous, plan)
    shown_on = console if rendezvous.is_first else None
    with (
        ProgressFollower([folder], shown_on, quiet=quiet, exports=exports) as view,
        Sides(deployment, folder, view.update, planned=plan is not None, resume=resume) as sides,
    ):
        sides.start_candidate(rendezvous, in_turns=False)
        sides.wait()
    return judge_and_report(folder) if rendezvous.is_first else None


def run_against_baseline(
    deployment: Deployment,
    folder: RunFolder,
    console: Console,
    *,
    quiet: bool,
    exports: Exports | None = None,
    overrides: Mapping[str, str] | None = None,
    plan: Plan | None = None,
) -> Verdict:
    """Runs candidate and baseline on the same devices in alternating blocks until the claims are decided, then judges.

    Both sides' processes live throughout; one works while the other sleeps. Other baselines are run one after another
    when the declared one is done. One that cannot run leaves a sentence in its `infeasible.txt`, and the speed claims
    against the declared one become INCONCLUSIVE(baseline_infeasible).

    Raises:
        RunError: the candidate failed, or a baseline for another reason than its memory.
    """
    _prepare(folder, deployment, Rendezvous(), plan)
    empty(folder.turns)
    followed = [folder, folder.baseline, *(folder.other_baseline(kind) for kind in _others(deployment))]
    with (
        ProgressFollower(followed, console, quiet=quiet, exports=exports) as view,
        Sides(deployment, folder, view.update, planned=plan is not None) as sides,
    ):
        sides.start_candidate(Rendezvous(), in_turns=True)
        conductor = Conductor(deployment, folder, sides)
        conductor.warm_up(CANDIDATE, folder)  # first, so that it is not the candidate that finds no memory left
        baseline = None if deployment.baseline is None else sides.start_baseline()
        if baseline is not None:
            conductor.warm_up(baseline, folder.baseline)
        if deployment.measurement.self_test:
            conductor.plant()
        conductor.sample(baseline=baseline is not None)
        if baseline is not None:
            conductor.dismiss(baseline)
        for kind in _others(deployment):
            if (other := sides.start_baseline(kind)) is not None:
                conductor.compare(kind, other)
        stop(folder.turns)
        sides.wait()
    return judge_and_report(folder, overrides)


def run_self_test(
    deployment: Deployment,
    folder: RunFolder,
    console: Console,
    *,
    quiet: bool,
    exports: Exports | None = None,
    overrides: Mapping[str, str] | None = None,
    plan: Plan | None = None,
) -> Verdict:
    """Runs the candidate's ranks only to test the instrument: planted imbalances, A/A, the cost of telemetry.

    Raises:
        RunError: a rank failed.
    """
    _prepare(folder, deployment, Rendezvous(), plan)
    empty(folder.turns)
    with (
        ProgressFollower([folder], console, quiet=quiet, exports=exports) as view,
        Sides(deployment, folder, view.update, planned=plan is not None) as sides,
    ):
        sides.start_candidate(Rendezvous(), in_turns=True)
        conductor = Conductor(deployment, folder, sides)
        conductor.warm_up(CANDIDATE, folder)
        conductor.self_test_only()
        stop(folder.turns)
        sides.wait()
    return judge_and_report(folder, overrides)


def judge_and_report(folder: RunFolder, overrides: Mapping[str, str] | None = None) -> Verdict:
    """Judges the files of a run folder, notes its prediction, and writes verdict.json and the reports beside them."""
    verdict = overridden(judge(folder.path), overrides or {})
    write_verdict(verdict, folder.verdict)
    if unnoted := note_prediction(folder, verdict):
        print(f"hybrid-runtime: {unnoted}", file=sys.stderr)
    write_reports(folder, verdict)
    return verdict


def _others(deployment: Deployment) -> Sequence[BaselineKind]:
    declared = deployment.baseline
    return [] if declared is None else [kind for kind in dict.fromkeys(declared.others) if kind != declared.kind]


def _prepare(folder: RunFolder, deployment: Deployment, rendezvous: Rendezvous, plan: Plan | None) -> None:
    if deployment.model is None or deployment.batch is None:
        missing = " and ".join(f"[{name}]" for name in ("model", "batch") if getattr(deployment, name) is None)
        raise UsageError(f"{deployment.name}: a run needs {missing}; add it (`check` alone works without)")
    folder.refuse_used()
    folder.create()
    if rendezvous.is_first:
        empty(folder.failures)
    write_whole(folder.deployment_of_node(rendezvous.node_rank), deployment.canonical_json())
    if plan is not None:
        write_whole(folder.plan_of_node(rendezvous.node_rank), plan.to_json())
