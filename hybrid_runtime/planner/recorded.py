"""Costs of units as a run's, or a rehearsal's, records imply them: stage times taken apart, so that stages can be cut
anew.

    stage 0   embedding + 2 attn + 2 mlp   = 6100 us      unknown: a time per kind of unit, for F, I, W and B
    stage 1               2 attn + 3 mlp   = 7600 us      known: one sum per stage and kind of action
    stage 2   head      + 2 attn + 1 mlp   = 6000 us      prior: what FLOPs say

Least squares with a weak pull to the prior (ridge regression, Hoerl and Kennard 1970), because there may be fewer
stages than kinds of units; what a stage then still takes more or less is laid on its units in equal parts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import read_piece, unit_of
from hybrid_runtime.plan import Plan, StagePlan
from hybrid_runtime.planner.analytic import AnalyticCosts, kind_of
from hybrid_runtime.planner.state_bytes import StateBytes
from hybrid_runtime.planner.step_model import Collective, Overlap
from hybrid_runtime.planner.work import Line, Unit, Work
from hybrid_runtime.predicted import LABELS, Label, Source, TimeInterval
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.step_costs import Hop, StepCosts

PULL = 1e-3  # of the prior, against one stage's worth of evidence
_FIELD = {Kind.F: "forward", Kind.B: "backward", Kind.I: "input_grad", Kind.W: "weight_grad"}


@dataclass(frozen=True)
class Evidence:
    """Where a plan's times were recorded.

    Attributes:
        rehearsed: its ranks ran alone; else together.
        fingerprint: of the machine; empty where the run's own header tells.
        update_ns_per_million: of clearing, norm and update, per million parameters of a rank.
    """

    rehearsed: bool = False
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    update_ns_per_million: int = 0


A_RUN = Evidence()


@dataclass(frozen=True)
class RecordedCosts:
    """A `StepModel` of one mesh and microbatch size: those of the plan whose run was measured.

    Attributes:
        base: bytes, parameters and FLOPs by formula.
        plan: that ran.
        measured: what its actions and messages took (`measured_costs`, `rehearsed_costs`).
    """

    base: AnalyticCosts
    plan: Plan
    measured: StepCosts
    evidence: Evidence = A_RUN

    action_ns = 0
    step_ns = 0
    overlap = Overlap()

    @property
    def source(self) -> Source:
        return "rehearsal" if self.evidence.rehearsed else "records"

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return self.evidence.fingerprint

    @property
    def labels(self) -> Mapping[str, Label]:
        return LABELS[self.source]

    @property
    def notes(self) -> tuple[str, ...]:
        how = "rehearsed" if self.evidence.rehearsed else "measured"
        again = any(stage.recompute != "none" for stage in self.plan.stages)
        return (
            f"costs of units: taken apart from the {how} times of stages",
            *(["what stages compute again: taken as that part of F which has its FLOPs"] if again else []),
        )

    @property
    def state(self) -> StateBytes:
        return self.base.state

    def line(self, tp_degree: int, microbatch_size: int) -> Line:
        if (tp_degree, microbatch_size) != (self.plan.tp_degree, self.plan.microbatch_size):
            raise PlanError(
                f"the run had tp_degree {self.plan.tp_degree} and microbatches of {self.plan.microbatch_size}; nothing "
                f"was measured of {tp_degree} and {microbatch_size}"
            )
        line = self.base.line(tp_degree, microbatch_size)
        times = unit_times(self.plan, line, self.measured)
        forward, backward = (
            _per_collective(self.plan, self.measured, kinds) for kinds in ((Kind.F,), (Kind.I, Kind.B))
        )
        return Line(tuple(_timed(unit, times, forward, backward) for unit in line.units), line.carry_bytes, line.shards)

    def collective_ns(self, kind: Collective, ranks: int, num_bytes: int, *, same_host: bool) -> int:
        return self.base.collective_ns(kind, ranks, num_bytes, same_host=same_host)

    def hop(self, *, same_host: bool) -> Hop:
        """The middle one of the measured edges."""
        found = sorted(int(hop.latency) for hop in self.measured.hops.values())
        return Hop(found[len(found) // 2]) if found else self.base.hop(same_host=same_host)

    def post_ns(self, num_bytes: int, *, same_host: bool) -> int:
        return 0

    def optimizer_ns(self, parameters: int) -> int:
        return self.evidence.update_ns_per_million * parameters // 10**6

    def interval(self, p50_ns: int) -> TimeInterval:
        return self.base.interval(p50_ns)


def unit_times(plan: Plan, line: Line, measured: StepCosts) -> dict[Kind, dict[str, float]]:
    """Time of every whole unit that forgets nothing, in F, B, I and W, in nanoseconds of a rank.

    What a stage computes again is taken to last as its FLOPs say, as a part of what its own F took; with that every
    stage of the plan has exactly its measured sums.

    Args:
        line: of units that forget nothing.

    Raises:
        PlanError: no time of a stage is known.
    """
    forward = _unit_times(plan, line, Kind.F, [float(_time(measured, stage.index, Kind.F)) for stage in plan.stages])
    found = {Kind.F: forward}
    for kind in (Kind.B, Kind.I, Kind.W):
        taken = [
            max(0.0, _time(measured, stage.index, kind) - _again(stage, line, forward, kind)) for stage in plan.stages
        ]
        found[kind] = _unit_times(plan, line, kind, taken)
    return found


def _again(stage: StagePlan, line: Line, forward: Mapping[str, float], kind: Kind) -> float:
    """Of a stage's backward, what it computes again: a part of what its units take in F."""
    units = {unit.cost.name: unit for unit in line.units}
    spent = 0.0
    for name, share in _amounts(stage.units, line).items():
        whole, again = units[name].whole, units[name].recomputing(stage.recompute).whole
        more = getattr(again, _FIELD[kind]) - getattr(whole, _FIELD[kind])
        spent += share * forward[name] * more / max(1, whole.forward)
    return spent


def _unit_times(plan: Plan, line: Line, kind: Kind, taken: Sequence[float]) -> dict[str, float]:
    """Times of which every stage of the plan has exactly the sum that was taken."""
    amounts = [_amounts(stage.units, line) for stage in plan.stages]
    prior = _prior(line, kind, sum(taken))
    kinds = sorted(prior)
    by_kind = np.array([[_sum_of(kind, amount) for kind in kinds] for amount in amounts])
    expected = np.array([prior[kind] for kind in kinds])
    scale = np.maximum(expected, 1.0)
    weights = by_kind * scale  # unknown: each kind's time as a multiple of its prior
    pull = PULL * float(np.mean(np.sum(weights * weights, axis=1))) or 1.0
    system = weights.T @ weights + pull * np.eye(len(kinds))
    solved = np.linalg.solve(system, weights.T @ np.array(taken) + pull * (expected / scale))
    fitted = dict(zip(kinds, np.maximum(solved, 0.0) * scale))
    factors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for amount, seconds in zip(amounts, taken):
        expected_ns = sum(share * fitted[kind_of(unit)] for unit, share in amount.items())
        for unit, share in amount.items():
            factors[unit].append((share, seconds / expected_ns if expected_ns else 1.0))
    return {
        unit: float(fitted[kind_of(unit)]) * sum(share * factor for share, factor in found) / sum(s for s, _ in found)
        for unit, found in factors.items()
    }


def _amounts(names: Sequence[str], line: Line) -> dict[str, float]:
    """Which part of each unit a stage holds."""
    parts = {unit.cost.name: unit.cost.parts for unit in line.units}
    found: dict[str, float] = defaultdict(float)
    for name in names:
        piece = read_piece(name)
        found[unit_of(name)] += 1.0 if piece is None else piece.parts / parts[piece.unit]
    return dict(found)


def _sum_of(kind: str, amount: Mapping[str, float]) -> float:
    return sum(share for unit, share in amount.items() if kind_of(unit) == kind)


def _prior(line: Line, kind: Kind, total_ns: float) -> dict[str, float]:
    """Time of every kind of unit by FLOPs; what has none is expected to take a tenth of a mean unit."""
    works = {unit.cost.name: float(getattr(unit.whole, _FIELD[kind])) for unit in line.units}
    whole = sum(works.values()) or 1.0
    tenth = 0.1 * total_ns / len(works)
    return {kind_of(name): max(work / whole * total_ns, tenth) for name, work in works.items()}


def _time(measured: StepCosts, stage: int, kind: Kind) -> int:
    """Measured, or with whole backwards B divided and with split ones I and W joined."""
    known = measured.durations
    if kind in (Kind.I, Kind.W) and (stage, kind) not in known:
        return int(known.get((stage, Kind.B), 0)) // 2
    if kind is Kind.F and (stage, kind) not in known:
        raise PlanError(f"no forward of stage {stage} was measured; name a run that got as far as its measured steps")
    if kind is Kind.B and (stage, kind) not in known:
        return int(known.get((stage, Kind.I), 0)) + int(known.get((stage, Kind.W), 0))
    return int(known[stage, kind])


def _per_collective(plan: Plan, measured: StepCosts, kinds: Sequence[Kind]) -> int:
    """Time of one tensor-parallel collective, of those that the stages' units hold."""
    waited = sum(int(measured.tensor_parallel.get((stage.index, kind), 0)) for stage in plan.stages for kind in kinds)
    return waited // max(1, sum(len(stage.units) for stage in plan.stages))


def _timed(unit: Unit, times: Mapping[Kind, Mapping[str, float]], tp_forward: int, tp_backward: int) -> Unit:
    """The unit with measured times; a piece takes what it has of the unit's parts."""
    name, parts = unit.cost.name, unit.cost.parts

    @cache
    def piece(start: int, stop: int) -> Work:
        def share(kind: Kind) -> int:
            whole = round(times[kind].get(name, 0.0))
            return whole * stop // parts - whole * start // parts

        by_formula = unit.piece(start, stop)
        return by_formula._replace(
            forward=share(Kind.F),
            backward=share(Kind.B),
            input_grad=share(Kind.I),
            weight_grad=share(Kind.W),
            tp_forward=tp_forward if by_formula.tp_forward else 0,
            tp_backward=tp_backward if by_formula.tp_backward else 0,
            tp_input_grad=tp_backward if by_formula.tp_input_grad else 0,
        )

    forgets = unit.forgets
    if forgets is None:
        return replace(unit, piece=piece)
    # what collectives that are done again take is among those that were measured
    return replace(unit, piece=piece, forgets=lambda *of: forgets(*of)._replace(collectives=0))
