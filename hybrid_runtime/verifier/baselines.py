"""The baselines of a run: the declared one, which decides, and others that were run to see whether it is a fair one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

from hybrid_runtime.deployment import BaselineKind, Deployment
from hybrid_runtime.errors import RecordsError
from hybrid_runtime.exact import decimal_text
from hybrid_runtime.plan import Plan
from hybrid_runtime.records import AGAINST
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verdict import OtherBaseline
from hybrid_runtime.verifier.comparison import Baseline, latency, throughput
from hybrid_runtime.verifier.finding import sentences
from hybrid_runtime.verifier.metrics import Metrics, measure
from hybrid_runtime.verifier.side import load_side
from hybrid_runtime.verifier.terms import Terms

_IS_KIND: dict[BaselineKind, Callable[[Plan], bool]] = {
    "single": lambda plan: plan.mesh.world_size == 1,
    "tp_only": lambda plan: plan.mesh.world_size == plan.tp_degree,
    "pp_only": lambda plan: plan.mesh.world_size == plan.pp_degree,
    "dp_only": lambda plan: plan.mesh.world_size == plan.dp_degree,
    "naive_pipeline": lambda plan: plan.num_microbatches == 1,
}


def read_baseline(folder: RunFolder, kind: BaselineKind | None, *, finished: bool = True) -> Baseline:
    """What a baseline's folder holds: metrics of what its speed is judged by, why it could not run, or nothing.

    Raises:
        RecordsError: its files are damaged, or are not of that kind of baseline.
    """
    if folder.infeasible.is_file():
        words = folder.infeasible.read_text(encoding="utf-8", errors="replace").strip()
        return Baseline(infeasible=words or "the baseline could not be run, and no reason was written down")
    if not folder.path.is_dir():
        return Baseline()
    side = load_side(folder.path, "baseline", finished=finished)
    if kind and not _IS_KIND[kind](side.plan):
        raise RecordsError(f"{folder.plan}: {side.plan.mesh} is not the {kind} baseline that the deployment names")
    return Baseline(metrics=measure(side).bare)


def other_baselines(
    run: RunFolder, deployment: Deployment, candidate: Metrics, terms: Terms
) -> Iterator[tuple[OtherBaseline, Baseline]]:
    """Every baseline that was run beside the declared one, with what it did.

    Raises:
        RecordsError: as `read_baseline`; or a folder is named after no kind.
    """
    folders = sorted(run.other_baselines.iterdir()) if run.other_baselines.is_dir() else []
    for path in folders:
        kind = next((kind for kind in _IS_KIND if kind == path.name), None)
        if kind is None:
            raise RecordsError(f"{path}: is no kind of baseline ({', '.join(_IS_KIND)}); remove it")
        baseline = read_baseline(RunFolder(path), kind)
        yield _row(kind, deployment, candidate.of(AGAINST + kind), baseline, terms), baseline


def _row(
    kind: BaselineKind, deployment: Deployment, candidate: Metrics, baseline: Baseline, terms: Terms
) -> OtherBaseline:
    faster = latency(deployment, candidate, baseline, Fraction(), terms)
    more = throughput(deployment, candidate, baseline, Fraction(), terms)
    metrics = baseline.metrics
    reason = faster.reason if faster.reason not in (None, "interval_straddles_threshold") else None
    return OtherBaseline(
        kind=kind,
        mesh=str(metrics.side.plan.mesh) if metrics else "not run",
        resource_matched=bool(metrics) and len(metrics.devices) == len(candidate.devices) if metrics else False,
        latency=faster.measured,
        throughput=more.measured,
        detail=sentences(reason or "", faster.detail),
    )


def fairness_warnings(
    candidate: Metrics, kind: BaselineKind | None, declared: Baseline, others: list[tuple[OtherBaseline, Baseline]]
) -> list[str]:
    """Whether the declared baseline is weaker than another one that the same devices allow."""
    if declared.metrics is None or kind is None:
        return []
    warnings = []
    used, there = len(declared.metrics.devices), len(candidate.devices)
    if used != there:
        warnings.append(f"the declared baseline ({kind}) uses {used} of the candidate's {there} devices")
    best = max(
        (
            (baseline.metrics.tokens_per_s, row.kind)
            for row, baseline in others
            if row.resource_matched and baseline.metrics is not None and baseline.metrics.steps
        ),
        default=None,
    )
    if best is not None and declared.metrics.steps and best[0] > declared.metrics.tokens_per_s:
        ahead = (best[0] / declared.metrics.tokens_per_s - 1) * 100
        warnings.append(
            f"the declared baseline ({kind}) is not the best of equal resources: {best[1]} on the candidate's "
            f"{there} devices did {decimal_text(ahead, 1)} % more tokens/s"
        )
    return warnings
