"""A plan that somebody made before: is it right, is it for this deployment, and which deployment does it make of it?

    FILE --> deployment --+
                          +--resolved--> the deployment that runs: the plan's degrees, schedule, cuts, microbatch size
    plan.json --> plan ---+--adopted---> the plan that runs, if the model's own units say the same

    deployment_and_plan     both from their files; without a plan the deployment is the file's own

The plan decides how the work is laid out; what the work is (model, batch, workload) must be the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hybrid_runtime.deployment import Deployment, Parallel, Pipeline, load_deployment
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.deployment_rules import rules_between_tables
from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import read_piece, unit_of
from hybrid_runtime.plan import Plan, StagePlan, UnitCost, read_plan
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.cover import parts_of, stage_cover, tp_findings
from hybrid_runtime.schedule.actions import ActionList, parse_actions
from hybrid_runtime.schedule.check import CheckResult, check
from hybrid_runtime.schedule.choose import is_searched

_FIGURES = ("forward_flops", "input_grad_flops", "weight_grad_flops", "parameters")


def deployment_and_plan(file: Path, plan_file: Path | None) -> tuple[Deployment, Plan | None]:
    """The deployment that runs, and the plan that it follows: the file's own and None, or resolved from a given plan.

    Raises:
        UsageError: a file is unusable.
        PlanError: as `read_given` and `resolved`.
    """
    deployment = load_deployment(file)
    if plan_file is None:
        return deployment, None
    plan = read_given(plan_file)
    return resolved(deployment, plan, f"--plan {plan_file}"), plan


def read_given(path: Path) -> Plan:
    """Reads a plan that is to be run.

    Raises:
        PlanError: it is no plan, its stages do not hold its units, or its lists are wrong.
    """
    plan = read_plan(path)
    stages, parts = [stage.units for stage in plan.stages], parts_of(plan.units)
    problems = stage_cover(stages, [cost.name for cost in plan.units], parts=parts)
    problems = problems or tp_findings(stages, parts, plan.tp_degree)
    if problems:
        raise PlanError(f"{path}: its stages do not hold its model: {problems[0]}; plan again")
    checked_lists(plan, str(path))
    return plan


def resolved(deployment: Deployment, plan: Plan, source: str) -> Deployment:
    """The deployment that runs when it follows a plan; resolving it once more changes nothing.

    Args:
        source: where the plan was read, for messages.

    Raises:
        PlanError: the plan is for other work: another workload, batch or model; or makes a deployment that no file may
            ask for.
    """
    differing = next(_differences(deployment, plan), None)
    if differing is not None:
        raise PlanError(f"{source}: is a plan for other work: {differing}; plan this deployment, or name its own plan")
    assert deployment.batch is not None, "a deployment without a batch differs from every plan"
    per_rank, rest = divmod(len(plan.stages), plan.pp_degree)
    found = deployment.model_copy(
        update={
            "model": None
            if deployment.model is None
            else deployment.model.model_copy(update={"compile": plan.compile}),
            "parallel": Parallel(
                tp_degree=plan.tp_degree,
                pp_degree=plan.pp_degree,
                dp_degree=plan.dp_degree,
                sequence_parallel=plan.sequence_parallel,
                shard_optimizer=deployment.parallel.shard_optimizer
                if plan.shard_optimizer is None
                else plan.shard_optimizer,
            ),
            "pipeline": Pipeline(
                schedule=plan.schedule,
                virtual_stages=None if rest else per_rank,
                in_flight_limit=deployment.pipeline.in_flight_limit if is_searched(plan.schedule) else None,
                cuts=[_range(stage) for stage in plan.stages],
                recompute=_recompute(plan),
                **_rows(plan),
            ),
            "batch": deployment.batch.model_copy(
                update={
                    "microbatch_size": plan.microbatch_size,
                    "prefill_chunk_tokens": plan.prefill_chunk_tokens,
                    "items_in_flight": plan.items_in_flight,
                }
            ),
        }
    )
    wrong, _ = next(rules_between_tables(found.model_fields_set, dict(found)), ("", ""))
    if wrong:
        raise PlanError(f"{source}: makes of {deployment.name} a deployment that {wrong}; plan this deployment")
    return found


def adopted(plan: Plan, costs: Sequence[UnitCost], source: str) -> Plan:
    """The plan, once the units that will be built were seen to be the ones that it was made for.

    Raises:
        PlanError: they are of another model.
    """
    difference = other_model(plan.units, costs)
    if difference is not None:
        raise PlanError(f"{source}: is a plan for another model: {difference}; plan this deployment")
    return plan


def other_model(planned: Sequence[UnitCost], costs: Sequence[UnitCost]) -> str | None:
    """In what a plan's units and a model's differ, in words; None if they are the same."""
    names, own = [cost.name for cost in planned], [cost.name for cost in costs]
    if names != own:
        if len(names) != len(own):
            return f"it has {len(names)} units, the model {len(own)}"
        there, here = next(pair for pair in zip(names, own) if pair[0] != pair[1])
        return f"its unit {there!r} is {here!r} in the model"
    for one, other in zip(planned, costs):
        for figure in _FIGURES:
            if getattr(one, figure) != getattr(other, figure):
                words = figure.replace("_", " ")
                return f"{one.name} has {getattr(one, figure)} {words} in the plan, {getattr(other, figure)} here"
    return None


def checked_lists(plan: Plan, source: str) -> tuple[tuple[ActionList, ...], CheckResult]:
    """The action lists of a plan that was read from `source`, and what their checker says of them.

    Raises:
        PlanError: the lists are wrong, or do not fit the plan's stages.
    """
    try:
        lists = tuple(map(parse_actions, plan.actions))
    except ValueError as problem:
        raise PlanError(f"{source}: {problem}; plan again, or use the file as it was written") from None
    known = {cost.name for cost in plan.units}
    unknown = [name for stage in plan.stages for name in stage.units if unit_of(name) not in known]
    placed = set(plan.stage_to_rank) == set(range(plan.pp_degree)) and len(lists) == plan.pp_degree
    ordered = [stage.index for stage in plan.stages] == list(range(len(plan.stages)))
    negative = any(min(cost.forward_flops, cost.input_grad_flops, cost.weight_grad_flops) < 0 for cost in plan.units)
    batch = plan.dp_degree * plan.microbatch_size * plan.num_microbatches
    if unknown or not placed or not ordered or negative or min(plan.tp_degree, plan.pp_degree, plan.dp_degree) < 1:
        wrong = (
            f"the cost of unit {unknown[0]!r} is missing"
            if unknown
            else "its stages, lists, degrees and costs do not fit"
        )
        raise PlanError(f"{source}: {wrong}; plan again, or use the file as it was written")
    if batch != plan.global_batch_size:
        raise PlanError(
            f"{source}: {plan.dp_degree} replicas of {plan.num_microbatches} microbatches of {plan.microbatch_size} "
            f"are {batch} sequences, not {plan.global_batch_size}; plan again, or use the file as it was written"
        )
    checked = check(lists, plan.stage_to_rank, plan.num_microbatches, plan.workload)
    if checked.findings:
        raise PlanError(
            f"{source}: its lists are wrong: {checked.findings[0]}; plan again, or use the file as it was written"
        )
    return lists, checked


def _differences(deployment: Deployment, plan: Plan) -> Iterator[str]:
    """What the work of a deployment and of a plan differ in, the first first."""
    batch, shape = deployment.batch, deployment.shape
    if plan.workload != deployment.workload.passes:
        yield f"workload {plan.workload!r} in the plan, {deployment.workload.passes!r} in {deployment.name}"
    if batch is None:
        yield f"{deployment.name} has no [batch]"
        return
    for name in ("global_batch_size", "sequence_length"):
        if getattr(plan, name) != getattr(batch, name):
            yield f"{name} {getattr(plan, name)} in the plan, {getattr(batch, name)} in {deployment.name}"
    if shape is not None:
        own = unit_costs(
            shape,
            microbatch_size=plan.microbatch_size,
            sequence_length=plan.sequence_length,
            workload=plan.workload,
        )
        difference = other_model(plan.units, own)
        if difference is not None:
            yield f"another model: {difference}"


def _rows(plan: Plan) -> dict[str, list[int]]:
    """Rows of the embedding on every pipeline rank, where the plan shards it."""
    pieces = [read_piece(name) for name in plan.embedding_pieces]
    return {"embedding_rows": [piece.parts if piece else 0 for piece in pieces]} if pieces else {}


def _recompute(plan: Plan) -> RecomputeKind | list[RecomputeKind]:
    """One word where all stages forget the same."""
    kinds = [stage.recompute for stage in plan.stages]
    return kinds if len(set(kinds)) > 1 else kinds[0]


def _range(stage: StagePlan) -> str:
    first, last = stage.units[0], stage.units[-1]
    return first if first == last else f"{first}..{last}"
