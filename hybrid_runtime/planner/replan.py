"""Measured rebalancing: cuts, embedding rows and a searched schedule solved again with what a run measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import read_piece
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.analytic import AnalyticCosts
from hybrid_runtime.planner.choose_plan import known_rows, searched
from hybrid_runtime.planner.evaluate import Evaluated, broken_promises, evaluate, evaluate_as_planned
from hybrid_runtime.planner.layout import CutKind, Layout, Setting
from hybrid_runtime.planner.recorded import RecordedCosts
from hybrid_runtime.planner.request import rates_of, setting_of
from hybrid_runtime.planner.write_plan import write_plan
from hybrid_runtime.schedule.choose import is_searched
from hybrid_runtime.schedule.step_costs import StepCosts


def replan(
    plan: Plan, deployment: Deployment, measured: StepCosts, ledger_peaks: Sequence[int] = (), *, pieces: bool = True
) -> Plan:
    """The plan that a run's measured costs ask for: same mesh, microbatches and schedule. Equal arguments, equal plans.

    Args:
        plan: that ran.
        deployment: that it was made or resolved for.
        measured: costs of its stages (`measured_costs`).
        ledger_peaks: bytes that every pipeline rank held at most; what they exceed the prediction by is expected again.
        pieces: cuts may fall inside units.

    Raises:
        PlanError: the plan's schedule is a file, the model is none of the Llama family, or a stage was not measured.
    """
    assert deployment.model is not None, "a plan that ran has a model"
    setting = replace(setting_of(deployment), num_devices=plan.mesh.world_size)
    base = AnalyticCosts(
        setting.shape,
        plan.sequence_length,
        deployment.model.dtype,
        plan.workload,
        plan.sequence_parallel,
        rates_of(deployment),
        deployment.search.granule,
    )
    model = RecordedCosts(base, plan, measured)
    layout = layout_of(plan, pieces=pieces)
    if ledger_peaks:
        setting = replace(setting, beside_bytes=_beside(plan, layout, setting, model, ledger_peaks))
    kinds: tuple[CutKind, ...] = ("fractional", "whole") if pieces else ("whole",)
    tried = [_solved(replace(layout, cuts=cuts), setting, model) for cuts in kinds]
    best = min(tried, key=lambda one: (len(broken_promises(one, setting)), one.compute_share_range, one.step_ns))
    return write_plan(best, setting, model)


def layout_of(plan: Plan, *, pieces: bool = True) -> Layout:
    """The layout of a plan."""
    per_rank = len(plan.stages) // plan.pp_degree
    limit = None
    if is_searched(plan.schedule):
        limit = max(1, int(max(plan.peak_microbatches)))
    cut = any(read_piece(name) for stage in plan.stages for name in stage.units)
    return Layout(
        plan.mesh,
        plan.microbatch_size,
        plan.num_microbatches,
        plan.schedule,
        per_rank if plan.schedule.startswith("interleaved") else None,
        cuts="fractional" if pieces or cut else "whole",
        sharded=any(plan.embedding_pieces),
        share=_first_share(plan),
        in_flight=limit,
    )


def _first_share(plan: Plan) -> Fraction:
    """Of a rank's FLOPs, what the first of its two stages has, as the mean over ranks in hundredths."""
    if len(plan.stages) != 2 * plan.pp_degree:
        return Fraction(1, 2)
    flops = plan.prediction.stage_flops
    first = sum(flops[: plan.pp_degree])
    share = Fraction(round(100 * Fraction(first, sum(flops) or 1)), 100)
    return min(max(share, Fraction(3, 10)), Fraction(7, 10))


def _solved(layout: Layout, setting: Setting, model: RecordedCosts) -> Evaluated:
    rows = searched(layout, setting, model) if is_searched(layout.schedule) else known_rows(layout, setting)
    return evaluate(layout, setting, model, rows)


def _beside(
    plan: Plan, layout: Layout, setting: Setting, model: RecordedCosts, ledger_peaks: Sequence[int]
) -> tuple[int, ...]:
    """What every rank held beyond what this plan's stages are calculated to hold."""
    if len(ledger_peaks) != plan.pp_degree:
        raise PlanError(
            f"{len(ledger_peaks)} memory peaks are given for {plan.pp_degree} pipeline ranks; give one each"
        )
    calculated = evaluate_as_planned(plan, layout, setting, model)
    return tuple(peak - memory.ledger_peak for peak, memory in zip(ledger_peaks, calculated))
