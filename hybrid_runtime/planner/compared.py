"""What a plan is compared with: plans that nobody needs a planner for, predicted by the same costs and replays.

naive_pipeline                 the same mesh, one microbatch per replica
equal layers, 1f1b, m = p      the same mesh, as many microbatches as pipeline ranks
equal layers, 1f1b, same m     the same mesh and microbatches
dp_only                        every device a replica, the microbatch size that is fastest
"""

from __future__ import annotations

from fractions import Fraction

from hybrid_runtime.errors import PlanError
from hybrid_runtime.exact import decimal_text
from hybrid_runtime.mesh import Mesh, divisors
from hybrid_runtime.planner.candidates import MOST_ACTIONS
from hybrid_runtime.planner.evaluate import Evaluated, evaluate
from hybrid_runtime.planner.layout import Layout, Setting
from hybrid_runtime.planner.orders import known_rows
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.predicted import PredictedBaseline


def baselines(chosen: Evaluated, setting: Setting, model: StepModel) -> tuple[PredictedBaseline, ...]:
    """Every baseline of a chosen plan; one that cannot run says why."""
    mesh, m = chosen.layout.mesh, chosen.layout.num_microbatches

    def same(schedule: str, count: int) -> Layout | str:
        return _of_microbatches(schedule, mesh, count, setting, shared=chosen.layout.shard_optimizer)

    return (
        _baseline("naive_pipeline", same("gpipe", 1), chosen, setting, model),
        _baseline("equal layers, 1f1b, m = p", same("1f1b", mesh.pp_degree), chosen, setting, model),
        _baseline("equal layers, 1f1b, same m", same("1f1b", m), chosen, setting, model),
        _best_dp_only(chosen, setting, model),
    )


def _of_microbatches(schedule: str, mesh: Mesh, count: int, setting: Setting, *, shared: bool) -> Layout | str:
    """The layout with equal layers and so many microbatches, or why there is none."""
    size, rest = divmod(setting.global_batch_size, mesh.dp_degree * count)
    if rest or not size:
        share = setting.global_batch_size // mesh.dp_degree
        return f"a replica's {share} sequences do not divide into {count} microbatches"
    return Layout(mesh, size, count, schedule, cuts="even", sharded=False, shard_optimizer=shared)


def _best_dp_only(chosen: Evaluated, setting: Setting, model: StepModel) -> PredictedBaseline:
    mesh = Mesh(dp_degree=setting.num_devices)
    share, rest = divmod(setting.global_batch_size, setting.num_devices)
    if rest or not share:
        why = f"a batch of {setting.global_batch_size} sequences does not divide into {setting.num_devices} replicas"
        return _baseline("dp_only", why, chosen, setting, model)
    counts = [count for count in divisors(share) if 3 * count <= MOST_ACTIONS]
    tried = [
        _baseline("dp_only", _of_microbatches("1f1b", mesh, count, setting, shared=shared), chosen, setting, model)
        for count in counts
        for shared in (setting.shardings if mesh.dp_degree > 1 else (False,))
    ]
    running = [one for one in tried if one.step_time is not None]
    return min(running, key=lambda one: one.step_time.p50_ns) if running else tried[-1]  # type: ignore[union-attr]


def _baseline(
    kind: str, layout: Layout | str, chosen: Evaluated, setting: Setting, model: StepModel
) -> PredictedBaseline:
    if isinstance(layout, str):
        mesh = Mesh(dp_degree=setting.num_devices) if kind == "dp_only" else chosen.layout.mesh
        return _missing(kind, mesh, "1f1b", 0, layout)
    try:
        found = evaluate(layout, setting, model, known_rows(layout, setting))
    except PlanError as problem:
        return _missing(kind, layout.mesh, layout.schedule, layout.num_microbatches, str(problem))
    lacking = 0 if setting.memory_bytes is None else found.peak_bytes - setting.memory_bytes
    if lacking > 0:
        why = f"out of memory by {lacking / 1e9:.3g} GB"
        return _missing(kind, layout.mesh, layout.schedule, layout.num_microbatches, why)
    return PredictedBaseline(
        kind=kind,
        mesh=str(layout.mesh),
        schedule=layout.schedule,
        num_microbatches=layout.num_microbatches,
        step_time=model.interval(found.step_ns),
        speed_up=decimal_text(Fraction(found.step_ns, max(1, chosen.step_ns))),
    )


def _missing(kind: str, mesh: Mesh, schedule: str, count: int, why: str) -> PredictedBaseline:
    return PredictedBaseline(
        kind=kind,
        mesh=str(mesh),
        schedule=schedule,
        num_microbatches=count,
        step_time=None,
        speed_up=None,
        why_not=why,
    )
