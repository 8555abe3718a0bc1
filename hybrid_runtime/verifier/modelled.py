"""Beside a time claim that shared cores leave undecided: the run's own lists replayed with the run's own costs.

    records --run_costs--> whole step --> utilisation of the least busy rank
                                 +-- baseline's records, replayed alike --> latency reduction, throughput gain
                                 +-- equal layers, 1f1b, m = p and same m; this plan at tp 1: shown beside it

It never decides: the claim stays INCONCLUSIVE and carries WOULD PASS or WOULD FAIL, compared exactly; UNDECIDED where
the replay is a best case and meets the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.errors import PlanError, RecordsError
from hybrid_runtime.exact import decimal_text, exact_text
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.other_plans import uniform_1f1b, without_tensor_parallelism
from hybrid_runtime.planner.run_costs import RunCosts, WholeStep, recorded, run_costs, whole_step
from hybrid_runtime.predicted import PredictedStep
from hybrid_runtime.schedule.actions import Kind, parse_actions
from hybrid_runtime.schedule.step_costs import StageKind, StepCosts, Time
from hybrid_runtime.verdict import Claim, Outcome
from hybrid_runtime.verdict_modelled import ModelledFigure, ModelledRun, ModelledStep
from hybrid_runtime.verifier.comparison import Baseline
from hybrid_runtime.verifier.metrics import Metrics
from hybrid_runtime.would import Would

BASELINE = "declared baseline"
METHOD = "replay with this run's own costs"
TIME_CLAIMS = ("utilisation", "latency_reduction", "throughput_gain")


class Replayed(NamedTuple):
    """A plan that was replayed, or the sentence why it could not be."""

    kind: str
    mesh: str
    schedule: str
    num_microbatches: int
    step: WholeStep | None
    detail: str


def modelled_run(
    claims: Sequence[Claim], candidate: Metrics, baseline: Baseline
) -> tuple[tuple[Claim, ...], ModelledRun | None]:
    """The claims, those that shared cores left undecided with what a replay says of them; and the replay.

    Args:
        baseline: the declared one.
    """
    if candidate.side.deployment.serves or not any(_undecided(claim) for claim in claims):
        return tuple(claims), None
    try:
        costs, source = _costs(candidate)
        own = _replayed("candidate", candidate, costs)
    except (PlanError, RecordsError) as problem:
        return tuple(claims), ModelledRun(method=f"not replayed: {problem}", steps=(), ranks=())
    assert own.step is not None
    others = [*_baseline(baseline), *_other_plans(candidate.side.plan, costs)]
    method = f"{source}; replayed are the plan's own lists"
    rows = tuple(_row(one, own.step) for one in (own, *others))
    at_best = _at_best(candidate)
    figured = (_with_figure(claim, own.step, others, at_best) if _undecided(claim) else claim for claim in claims)
    return tuple(figured), ModelledRun(method=method, steps=rows, ranks=own.step.ranks)


def _undecided(claim: Claim) -> bool:
    return claim.id in TIME_CLAIMS and claim.outcome is Outcome.INCONCLUSIVE and claim.reason == "oversubscribed"


def _costs(metrics: Metrics) -> tuple[RunCosts, str]:
    """A side's costs on its own clock; what shared cores hide of collectives comes from the plan's prediction."""
    costs = run_costs(recorded(metrics.side.ranks), metrics.clock)
    if metrics.clock == "wall":
        return costs, "medians of this run's actions, waits and messages, wall clock"
    predicted = metrics.side.plan.predicted
    words = "medians of this run's actions by thread CPU time, messages by the least that was seen"
    if metrics.side.plan.tp_degree == 1:
        return costs, words
    if predicted is None:
        return costs, f"{words}, collectives by the least that an action was held up (a lower bound)"
    waits = _predicted_waits(metrics.side.plan, predicted)
    step = costs.step
    step = StepCosts(step.durations, waits, step.hop, step.hops, step.message_bytes, step.action_bytes)
    return RunCosts(step, costs.gap_ns, costs.phases_ns), f"{words}, collectives as the plan predicted them"


def _at_best(metrics: Metrics) -> bool:
    """Whether the replay is a best case: shared cores hid what collectives take, and nobody predicted it."""
    plan = metrics.side.plan
    return metrics.clock != "wall" and plan.tp_degree > 1 and plan.predicted is None


def _predicted_waits(plan: Plan, predicted: PredictedStep) -> dict[StageKind, Time]:
    """A rank's predicted collectives of a step, shared out to its F, B and I by the units of their stages."""
    waits: dict[StageKind, Time] = {}
    step_ns = {rank.pp_rank: rank.time.tensor_parallel_ns for rank in predicted.ranks}
    for pp in range(plan.pp_degree):
        units = {stage.index: len(stage.units) for stage in plan.stages_of(pp)}
        actions = [action for action in parse_actions(plan.actions[pp]) if action.kind in (Kind.F, Kind.B, Kind.I)]
        shares = sum(units[action.stage] for action in actions)
        for action in actions:
            waits[action.stage, action.kind] = Fraction(step_ns.get(pp, 0) * units[action.stage], shares)
    return waits


def _replayed(kind: str, metrics: Metrics, costs: RunCosts) -> Replayed:
    plan = metrics.side.plan
    step = whole_step(tuple(map(parse_actions, plan.actions)), plan.stage_to_rank, costs)
    return Replayed(kind, str(plan.mesh), plan.schedule, plan.num_microbatches, step, "")


def _baseline(baseline: Baseline) -> Iterator[Replayed]:
    """The declared baseline, from its own records."""
    if baseline.metrics is None:
        return
    plan, kind = baseline.metrics.side.plan, BASELINE
    try:
        costs, source = _costs(baseline.metrics)
        yield _replayed(kind, baseline.metrics, costs)._replace(detail=source)
    except (PlanError, RecordsError) as problem:
        yield Replayed(kind, str(plan.mesh), plan.schedule, plan.num_microbatches, None, str(problem))


def _other_plans(plan: Plan, costs: RunCosts) -> Iterator[Replayed]:
    same, mesh = plan.num_microbatches, str(plan.mesh)
    if plan.pp_degree > 1:
        words = "this run's costs, shared out to units by their FLOPs"
        for kind, number in (("equal layers, 1f1b, m = p", plan.pp_degree), ("equal layers, 1f1b, same m", same)):
            step, why = _attempt(uniform_1f1b, plan, costs, number)
            yield Replayed(kind, mesh, "1f1b", number, step, why or words)
    if plan.tp_degree > 1:
        step, why = _attempt(without_tensor_parallelism, plan, costs)
        alone = f"tp 1 x pp {plan.pp_degree} x dp {plan.dp_degree}"
        words = "a rank does the work of its tensor-parallel peers too, and there is no collective among them"
        yield Replayed("this plan at tp 1", alone, plan.schedule, same, step, why or words)


def _attempt(replay: Callable[..., WholeStep], *arguments: object) -> tuple[WholeStep | None, str]:
    try:
        return replay(*arguments), ""
    except PlanError as problem:
        return None, str(problem)


def _row(one: Replayed, own: WholeStep) -> ModelledStep:
    step = one.step
    against = step is not None and one.kind != "candidate"
    return ModelledStep(
        kind=one.kind,
        mesh=one.mesh,
        schedule=one.schedule,
        num_microbatches=one.num_microbatches,
        step_ns=None if step is None else step.step_ns,
        utilisation=None if step is None else _percent(step.utilisation),
        latency_reduction=_percent(_reduction(own, step)) if against and step is not None else None,
        throughput_gain=_percent(_gain(own, step)) if against and step is not None else None,
        detail=one.detail,
    )


def _reduction(own: WholeStep, other: WholeStep) -> Fraction:
    return 1 - Fraction(own.step_ns, other.step_ns)


def _gain(own: WholeStep, other: WholeStep) -> Fraction:
    """Both work on the same global batch, so tokens per second go as one over the step's time."""
    return Fraction(other.step_ns, own.step_ns) - 1


def _with_figure(claim: Claim, own: WholeStep, others: Sequence[Replayed], at_best: bool) -> Claim:
    known = {one.kind: one.step for one in others if one.step is not None}
    if claim.id == "utilisation":
        point, beside = own.utilisation, {kind: step.utilisation for kind, step in known.items()}
    else:
        compare = _reduction if claim.id == "latency_reduction" else _gain
        beside = {kind: compare(own, step) for kind, step in known.items()}
        if BASELINE not in beside:
            return claim
        point = beside.pop(BASELINE)
    met: Would = "UNDECIDED" if at_best else "WOULD PASS"  # a lower bound of the step can only show what would fail
    would: Would = met if point * 100 >= Fraction(Decimal(claim.threshold)) else "WOULD FAIL"
    figure = ModelledFigure(
        point=_percent(point),
        exact=exact_text(point * 100),
        would=would,
        method=METHOD,
        beside={kind: f"{_percent(value)} %" for kind, value in beside.items()},
    )
    return claim.model_copy(update={"modelled": figure})


def _percent(part: Fraction) -> str:
    return decimal_text(part * 100, 2)
