"""What ran, in plain figures, one row per side; nothing here is judged."""

from __future__ import annotations

from fractions import Fraction

from hybrid_runtime.deployment import BaselineKind
from hybrid_runtime.exact import decimal_text
from hybrid_runtime.planner.model_flops import model_flops, served_flops
from hybrid_runtime.records import PLANTED
from hybrid_runtime.verdict import Outliers
from hybrid_runtime.verdict import Side as SideRow
from hybrid_runtime.verifier.metrics import Metrics
from hybrid_runtime.verifier.outliers import flag_outliers


def side_row(metrics: Metrics, kind: BaselineKind | None) -> SideRow:
    """Mesh, schedule, steps and median figures of a side."""
    side, plan, losses = metrics.side, metrics.side.plan, [loss for loss in metrics.losses() if loss is not None]
    measured = len(metrics.steps)
    mfu, mfu_peak = _utilisation(metrics) if measured else ("n/a", "")
    warmup = sum(step.phase == "warmup" and step.purpose != PLANTED for step in side.ranks[0].steps)
    return SideRow(
        role=side.role,
        kind=kind if side.role == "baseline" and kind else side.role,
        mesh=str(plan.mesh),
        schedule=plan.schedule,
        num_microbatches=plan.num_microbatches,
        world_size=plan.mesh.world_size,
        hardware=metrics.hardware,
        steps_warmup=warmup,
        steps_measured=measured,
        step_time_s=decimal_text(metrics.median_step_ns / 10**9, 9) if measured else "n/a",
        tokens_per_s=decimal_text(metrics.tokens_per_s, 3) if measured else "n/a",
        mfu=mfu,
        mfu_peak=mfu_peak,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
    )


def _utilisation(metrics: Metrics) -> tuple[str, str]:
    """Model FLOPs utilisation in percent and whose peak rates it is against; "n/a: why" where one is not known."""
    peaks = {rank.header.device.id: rank.header for rank in metrics.side.ranks}.values()
    sources = ", ".join(dict.fromkeys(header.peak_source for header in peaks))
    rates = [header.peak_flops_per_s for header in peaks if header.peak_flops_per_s is not None]
    if len(rates) < len(peaks):
        unknown = next(header.peak_source for header in peaks if header.peak_flops_per_s is None)
        return unknown, ""
    if metrics.side.deployment.serves:
        return decimal_text(100 * _served_flops(metrics) * 10**9 / (sum(metrics.windows_ns) * sum(rates)), 2), sources
    plan = metrics.side.plan
    per_token = Fraction(model_flops(plan, metrics.side.deployment.shape), plan.tokens_per_step)
    return decimal_text(100 * metrics.tokens_per_s * per_token / sum(rates), 2), sources


def _served_flops(metrics: Metrics) -> Fraction:
    """Of all requests of the judged rounds."""
    shape = metrics.side.deployment.shape
    assert shape is not None, "only models of the Llama family are served"
    requests = [request for step in metrics.requests for request in step if request.output_tokens]
    return Fraction(sum(served_flops(shape, one.prompt_tokens, one.output_tokens) for one in requests))


def outlier_row(metrics: Metrics) -> Outliers:
    """Which measured steps lie far from the others, and what leaving them out would change. There must be steps."""
    flagged = flag_outliers(metrics.windows_ns)
    return Outliers(
        role=metrics.side.role,
        steps=tuple(metrics.steps[index].step for index in flagged.indexes),
        median_step_s=_seconds(flagged.median),
        mean_step_s=_seconds(flagged.mean),
        mean_without_s=_seconds(flagged.mean_without),
    )


def _seconds(time_ns: Fraction) -> str:
    return decimal_text(time_ns / 10**9, 9)
