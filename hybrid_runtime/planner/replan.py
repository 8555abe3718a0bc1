"""Rebalancing: cuts, embedding rows and a searched schedule solved again with what a run, or a rehearsal, took.

plan --run--> records    --measured_costs--+
plan --rehearse--> rehearsal.json --rehearsed_costs--+--> replan --> plan, to be run or rehearsed again
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import read_piece
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.analytic import AnalyticCosts
from hybrid_runtime.planner.candidates import may_have_even_rows
from hybrid_runtime.planner.compared import baselines
from hybrid_runtime.planner.evaluate import (
    Evaluated,
    as_run,
    broken_promises,
    evaluate,
    evaluate_as_planned,
    share_range,
)
from hybrid_runtime.planner.layout import CutKind, Layout, Setting
from hybrid_runtime.planner.network import Network
from hybrid_runtime.planner.orders import known_rows, searched
from hybrid_runtime.planner.recorded import A_RUN, Evidence, RecordedCosts
from hybrid_runtime.planner.rehearsed import busy_ns, rehearsed_costs, update_ns_per_million
from hybrid_runtime.planner.request import rates_of, setting_of
from hybrid_runtime.planner.write_plan import write_plan
from hybrid_runtime.rehearsal import Rehearsal
from hybrid_runtime.schedule.choose import is_searched
from hybrid_runtime.schedule.step_costs import StepCosts

SETTLED = Fraction(2, 1000)  # of a share: balance that moves by less is noise of the times


def replan(
    plan: Plan,
    deployment: Deployment,
    measured: StepCosts,
    ledger_peaks: Sequence[int] = (),
    *,
    pieces: bool = True,
    evidence: Evidence = A_RUN,
) -> Plan:
    """The plan that a run's measured costs ask for: same mesh, microbatches and schedule. Equal arguments, equal plans.

    Args:
        plan: that ran.
        deployment: that it was made or resolved for.
        measured: costs of its stages (`measured_costs`, `rehearsed_costs`).
        ledger_peaks: bytes that every pipeline rank held at most; what they exceed the prediction by is expected again.
        pieces: cuts may fall inside units.
        evidence: where the costs were recorded.

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
        deployment.optimizer.master_weights,
    )
    model = RecordedCosts(base, plan, measured, evidence)
    shared = deployment.parallel.shard_optimizer if plan.shard_optimizer is None else plan.shard_optimizer
    layout = replace(layout_of(plan, pieces=pieces), shard_optimizer=shared and plan.dp_degree > 1)
    if ledger_peaks:
        setting = replace(setting, beside_bytes=_beside(plan, layout, setting, model, ledger_peaks))
    kinds: tuple[CutKind, ...] = ("fractional", "whole") if pieces else ("whole",)
    tried = [_solved(replace(layout, cuts=cuts), setting, model) for cuts in kinds]
    if may_have_even_rows(layout) and not (deployment.search.in_flight_limit or deployment.pipeline.in_flight_limit):
        tried += _with_even_rows([one.layout for one in tried], setting, model)
    best = min(tried, key=lambda one: (len(broken_promises(one, setting)), one.compute_share_range, one.step_ns))
    return write_plan(best, setting, model, baselines(best, setting, model))


def replan_rehearsed(plan: Plan, deployment: Deployment, rehearsal: Rehearsal, network: Network) -> Plan:
    """The plan that a rehearsal of `plan` asks for; as `replan`.

    Args:
        network: what communication takes; it does not move cuts.
    """
    peaks = [
        max(memory.allocated_peak or memory.ledger_peak or 0 for memory in rank.memory) for rank in rehearsal.ranks
    ]
    evidence = Evidence(True, rehearsal.fingerprint, update_ns_per_million(rehearsal))
    return replan(plan, deployment, rehearsed_costs(rehearsal, plan, network), peaks, evidence=evidence)


def balance_moved(rehearsal: Rehearsal, before: Plan, after: Plan) -> str:
    """How far the new plan moves the balance of compute, in words: whether another round is worth it."""
    assert after.predicted is not None
    devices = before.tp_degree * before.dp_degree
    had = share_range([busy_ns(rank) for rank in rehearsal.ranks], devices)
    gets = share_range([rank.time.compute_ns + rank.time.optimizer_ns for rank in after.predicted.ranks], devices)
    if same_work(before, after):
        return f"compute shares differ by {float(100 * had):.3f} pp as rehearsed; no other cuts are better: settled"
    settled = abs(had - gets) < SETTLED
    last = f"less than {float(100 * SETTLED):g} pp apart: settled" if settled else "rehearse the new plan, plan again"
    return (
        f"compute shares differ by {float(100 * had):.3f} pp as rehearsed, by {float(100 * gets):.3f} pp with the new "
        f"cuts; {last}"
    )


def same_work(one: Plan, other: Plan) -> bool:
    """Whether the ranks of two plans of one deployment do the same: equal stages, rows of the embedding and lists."""
    return (one.stages, one.embedding_pieces, one.actions) == (other.stages, other.embedding_pieces, other.actions)


def layout_of(plan: Plan, *, pieces: bool = True) -> Layout:
    """The layout of a plan."""
    per_rank = len(plan.stages) // plan.pp_degree
    limit = None
    if is_searched(plan.schedule):
        limit = max(1, int(max(_peaks_of_layers(plan))))
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
    ).forgetting([stage.recompute for stage in plan.stages])


def _peaks_of_layers(plan: Plan) -> tuple[Fraction, ...]:
    """Microbatches held at once by the ranks without the head, whose rank may hold more in place of rows."""
    others = [peak for rank, peak in enumerate(plan.peak_microbatches) if rank != plan.stage_to_rank[-1]]
    return tuple(others) or plan.peak_microbatches


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
    return as_run(evaluate(layout, setting, model, rows), setting, model)


def _with_even_rows(layouts: Sequence[Layout], setting: Setting, model: RecordedCosts) -> list[Evaluated]:
    """The layouts with room for even rows, as far as that leaves any order of actions."""
    found = []
    for layout in layouts:
        try:
            found.append(_solved(replace(layout, even_rows=True), setting, model))
        except PlanError:
            continue  # some rank has too little left; the layout as it is, which comes first, is solved anyway
    return found


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
