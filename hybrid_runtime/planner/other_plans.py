"""Costs of plans that did not run, from those of one that did: the same model cut, batched or shared out otherwise.

Inside a stage, measured time is shared out to units by their FLOPs, so that the stages' own sums come out as measured.
Collectives are shared out equally to the units that compute. All figures are modelled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import unit_of
from hybrid_runtime.plan import Plan, UnitCost
from hybrid_runtime.planner.costs import costs_of_names
from hybrid_runtime.planner.cuts import cut_units
from hybrid_runtime.planner.run_costs import RunCosts, WholeStep, whole_step
from hybrid_runtime.schedule.actions import Kind, parse_actions
from hybrid_runtime.schedule.choose import lowered_lists
from hybrid_runtime.schedule.step_costs import Hop, StageKind, StepCosts, Time

UnitTimes = Mapping[str, Mapping[Kind, Fraction]]  # ns by unit, and by F and B


def unit_times(plan: Plan, costs: StepCosts) -> dict[str, dict[Kind, Fraction]]:
    """What each unit took of one microbatch on a rank, forward and whole backward, ns.

    Raises:
        PlanError: the cost of a stage is not known.
    """
    times: dict[str, dict[Kind, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    for stage in plan.stages:
        units = costs_of_names(stage.units, plan.units)
        for kind, work in _works(units, plan.workload).items():
            total = sum(work)
            measured = Fraction(costs.compute(stage.index, kind))
            for name, part in zip(_whole_names(stage.units), work):
                times[name][kind] += measured * Fraction(part, total) if total else measured / len(work)
    return times


def uniform_1f1b(plan: Plan, costs: RunCosts, num_microbatches: int) -> WholeStep:
    """The step of equally many layers per rank under 1F1B, with microbatches resized so that there are so many.

    Time per token is taken to be the same at every microbatch size; collectives and messages grow with the size.

    Raises:
        PlanError: the sequences of a replica cannot be shared out so, or there are more ranks than units.
    """
    sequences = plan.microbatch_size * plan.num_microbatches
    if num_microbatches < 1 or sequences % num_microbatches:
        raise PlanError(f"{sequences} sequences of a replica do not make {num_microbatches} equal microbatches")
    grown = Fraction(plan.num_microbatches, num_microbatches)
    stages = cut_units("even", plan.units, plan.pp_degree)
    lists = lowered_lists("1f1b", plan.pp_degree, num_microbatches, plan.workload)
    step = _recut(plan, costs.step, stages, grown)
    return whole_step(lists, range(plan.pp_degree), RunCosts(step, costs.gap_ns, costs.phases_ns))


def without_tensor_parallelism(plan: Plan, costs: RunCosts) -> WholeStep:
    """The same stages and lists on pp ranks alone: a rank does the work of all its tensor-parallel peers, and waits
    for no collective.

    Raises:
        PlanError: as `whole_step`.
    """
    step = costs.step
    durations = {key: time * plan.tp_degree for key, time in step.durations.items()}
    alone = StepCosts(durations, {}, step.hop, step.hops, step.message_bytes, step.action_bytes)
    phases = tuple({name: time * plan.tp_degree for name, time in rank.items()} for rank in costs.phases_ns)
    lists = tuple(map(parse_actions, plan.actions))
    return whole_step(lists, plan.stage_to_rank, RunCosts(alone, costs.gap_ns, phases))


def _recut(plan: Plan, costs: StepCosts, stages: Sequence[Sequence[str]], grown: Fraction) -> StepCosts:
    times, waits = unit_times(plan, costs), _unit_waits(plan, costs)
    durations: dict[StageKind, Time] = {}
    collectives: dict[StageKind, Time] = {}
    for index, units in enumerate(stages):
        for kind in (Kind.F,) if plan.workload == "forward" else (Kind.F, Kind.B):
            durations[index, kind] = round(grown * sum(times[name][kind] for name in units))
            collectives[index, kind] = round(grown * sum(waits[name][kind] for name in units))
    latencies = [hop.latency for hop in costs.hops.values()] or [costs.hop.latency]
    hop = Hop(latency=round(grown * sum(latencies) / len(latencies)))
    return StepCosts(durations, collectives, hop)


def _unit_waits(plan: Plan, costs: StepCosts) -> dict[str, dict[Kind, Fraction]]:
    waits: dict[str, dict[Kind, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    for stage in plan.stages:
        names = _whole_names(stage.units)
        for kind in (Kind.F, Kind.B):
            for name in names:
                waits[name][kind] += Fraction(costs.collectives(stage.index, kind)) / len(names)
    return waits


def _works(units: Sequence[UnitCost], workload: str) -> dict[Kind, list[int]]:
    forward = {Kind.F: [unit.forward_flops for unit in units]}
    backward = {Kind.B: [unit.input_grad_flops + unit.weight_grad_flops for unit in units]}
    return forward if workload == "forward" else forward | backward


def _whole_names(names: Sequence[str]) -> list[str]:
    """Of every unit or piece, the unit it belongs to."""
    return [unit_of(name) for name in names]
