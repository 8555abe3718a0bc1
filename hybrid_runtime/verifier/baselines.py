"""The baselines of a run: the declared one, which decides, and others that were run to see whether it is a fair one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.deployment import BaselineKind, Deployment
from hybrid_runtime.errors import RecordsError
from hybrid_runtime.records import AGAINST
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verdict import OtherBaseline
from hybrid_runtime.verifier.comparison import Baseline, latency, throughput
from hybrid_runtime.verifier.finding import Finding, sentences
from hybrid_runtime.verifier.metrics import Metrics, measure
from hybrid_runtime.verifier.side import Side, load_side
from hybrid_runtime.verifier.terms import Terms

_IS_KIND: dict[BaselineKind, Callable[[Side], bool]] = {
    "single": lambda side: side.plan.mesh.world_size == 1,
    "tp_only": lambda side: side.plan.mesh.world_size == side.plan.tp_degree,
    "pp_only": lambda side: side.plan.mesh.world_size == side.plan.pp_degree,
    "dp_only": lambda side: side.plan.mesh.world_size == side.plan.dp_degree,
    "naive_pipeline": lambda side: side.plan.num_microbatches == 1 or _one_in_flight(side.deployment),
}


def _one_in_flight(deployment: Deployment) -> bool:
    return deployment.batch is not None and deployment.batch.items_in_flight == 1


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
    if kind and not _IS_KIND[kind](side):
        raise RecordsError(f"{folder.plan}: {side.plan.mesh} is not the {kind} baseline that the deployment names")
    return Baseline(metrics=measure(side).bare)


class Other(NamedTuple):
    """Another kind of baseline: its row, and how the candidate's throughput compares with it."""

    row: OtherBaseline
    throughput: Finding


def other_baselines(run: RunFolder, deployment: Deployment, candidate: Metrics, terms: Terms) -> list[Other]:
    """Every baseline that was run beside the declared one.

    Raises:
        RecordsError: as `read_baseline`; or a folder is named after no kind.
    """
    folders = sorted(run.other_baselines.iterdir()) if run.other_baselines.is_dir() else []
    return [_other(path, deployment, candidate, terms) for path in folders]


def _other(path: Path, deployment: Deployment, candidate: Metrics, terms: Terms) -> Other:
    kind = next((kind for kind in _IS_KIND if kind == path.name), None)
    if kind is None:
        raise RecordsError(f"{path}: is no kind of baseline ({', '.join(_IS_KIND)}); remove it")
    baseline = read_baseline(RunFolder(path), kind)
    against = candidate.of(AGAINST + kind)
    faster = latency(deployment, against, baseline, Fraction(), terms)
    more = throughput(deployment, against, baseline, Fraction(), terms)
    metrics = baseline.metrics
    row = OtherBaseline(
        kind=kind,
        mesh=str(metrics.side.plan.mesh) if metrics else "not run",
        resource_matched=metrics is not None and len(metrics.devices) == len(candidate.devices),
        latency=faster.measured,
        throughput=more.measured,
        detail=sentences(_reason(faster) or "", faster.detail),
    )
    return Other(row, more)


def _reason(finding: Finding) -> str | None:
    """Why a comparison may not be believed; that it is close to equality is no such reason."""
    return None if finding.reason == "interval_straddles_threshold" else finding.reason


def fairness_warnings(
    deployment: Deployment, candidate: Metrics, declared: Baseline, others: Sequence[Other], terms: Terms
) -> list[str]:
    """Whether the declared baseline is weaker than another one that the same devices allow, beyond doubt."""
    if declared.metrics is None or deployment.baseline is None:
        return []
    kind, warnings = deployment.baseline.kind, []
    used, there = len(declared.metrics.devices), len(candidate.devices)
    if used != there:
        warnings.append(f"the declared baseline ({kind}) uses {used} of the candidate's {there} devices")
    gain = throughput(deployment, candidate, declared, Fraction(), terms)
    better = [
        other.row
        for other in others
        if other.row.resource_matched and not _reason(other.throughput) and _is_below(other.throughput, gain)
    ]
    if better and not _reason(gain):
        best = min(better, key=lambda row: Decimal(row.throughput.point) if row.throughput else Decimal(0))
        assert best.throughput is not None
        assert gain.measured is not None
        warnings.append(
            f"the declared baseline ({kind}) is not the best of equal resources: against {best.kind} on all {there} "
            f"devices the gain is {best.throughput.point} %, not {gain.measured.point} %"
        )
    return warnings


def _is_below(gain: Finding, other: Finding) -> bool:
    """Whether the whole interval of a gain lies below another's."""
    if gain.measured is None or other.measured is None:
        return False
    return Decimal(gain.measured.upper) < Decimal(other.measured.lower)
