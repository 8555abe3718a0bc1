"""Deployment and unit costs -> plan: cuts, schedule, lowering, check, prediction. Same inputs, same plan.

Deployment -> stages -> compute lists -> lowered lists -> with lookups of a sharded embedding -> checked -> Plan
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hybrid_runtime.deployment import Batch, Deployment
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.plan import Plan, StagePlan, UnitCost
from hybrid_runtime.planner.baseline import baseline_deployment
from hybrid_runtime.planner.cover import checked_stages, demand_word_each
from hybrid_runtime.planner.embedding_rows import embedding_pieces
from hybrid_runtime.planner.predict import durations_in_flops, predict
from hybrid_runtime.planner.searched import searched_lists
from hybrid_runtime.schedule.actions import ActionList, texts
from hybrid_runtime.schedule.check import CheckResult, check
from hybrid_runtime.schedule.choose import accept, is_searched, lowered_lists, place
from hybrid_runtime.schedule.dependencies import lookup_stages
from hybrid_runtime.schedule.lookups import with_lookups
from hybrid_runtime.schedule.placement import StageToRank, linear
from hybrid_runtime.schedule.step_costs import StageKind, Time

__all__ = ["baseline_deployment", "make_plan"]  # the planner's two doors: the candidate's plan and its baseline


def make_plan(deployment: Deployment, costs: Sequence[UnitCost], *, mesh: Mesh | None = None) -> Plan:
    """The plan of a deployment.

    Args:
        costs: of all units in model order, for one microbatch (`costs.unit_costs`); zeros where nothing was counted.
        mesh: planned for instead of the deployment's own.

    Raises:
        PlanError: no batch, a batch that does not divide, cuts or embedding rows that do not hold the model, as many
            words for recompute as there are not stages, or a schedule that is unknown, wrong, or does not accept these
            degrees and microbatches.
    """
    mesh = mesh or deployment.mesh
    batch = batch_of(deployment)
    num_microbatches = _num_microbatches(batch, mesh)
    schedule, workload = deployment.pipeline.schedule, deployment.workload.passes
    virtual_stages = deployment.pipeline.virtual_stages
    stage_to_rank = place(schedule, mesh.pp_degree, virtual_stages)
    if deployment.serves:
        demand_linear(schedule, stage_to_rank)
    stages = checked_stages(deployment.pipeline.cuts, costs, len(stage_to_rank), mesh)
    pieces = embedding_pieces(deployment.pipeline.embedding_rows, costs, mesh)
    recompute = _recompute_of(deployment.pipeline.recompute, len(stages))
    durations = durations_in_flops(stages, costs, recompute)
    if is_searched(schedule):
        accept(schedule, mesh.pp_degree, num_microbatches, workload, virtual_stages)
        limit = deployment.pipeline.in_flight_limit
        lists = searched_lists(stage_to_rank, num_microbatches, durations, limit, deployment.workload.seed)
    else:
        lists = lowered_lists(schedule, mesh.pp_degree, num_microbatches, workload, virtual_stages)
    lists = place_lookups(lists, stage_to_rank, pieces, durations)
    checked = _checked(lists, stage_to_rank, num_microbatches, workload)
    return Plan(
        name=deployment.name,
        workload=workload,
        tp_degree=mesh.tp_degree,
        pp_degree=mesh.pp_degree,
        dp_degree=mesh.dp_degree,
        sequence_parallel=deployment.parallel.sequence_parallel,
        schedule=schedule,
        global_batch_size=batch.global_batch_size,
        microbatch_size=batch.microbatch_size,
        num_microbatches=num_microbatches,
        sequence_length=batch.sequence_length,
        stages=tuple(
            StagePlan(index=index, pp_rank=rank, units=units, recompute=kind)
            for index, (rank, units, kind) in enumerate(zip(stage_to_rank, stages, recompute))
        ),
        units=tuple(costs),
        actions=tuple(map(texts, lists)),
        prediction=predict(lists, stage_to_rank, stages, costs, checked, pieces, recompute),
        embedding_pieces=pieces,
        prefill_chunk_tokens=batch.prefill_chunk_tokens,
        items_in_flight=batch.items_in_flight,
        compile=deployment.model is not None and deployment.model.compile,
    )


def demand_linear(schedule: str, stage_to_rank: StageToRank) -> None:
    """Requests are served with one stage on each rank.

    Raises:
        PlanError: the schedule places stages otherwise.
    """
    if tuple(stage_to_rank) != linear(len(stage_to_rank)):
        raise PlanError(
            f"pipeline.schedule = {schedule!r} places stages on ranks {list(stage_to_rank)}; requests are served with "
            "one stage on each rank, in order: write schedule = '1f1b' (its order of backwards is not used)"
        )


def place_lookups(
    lists: Sequence[ActionList],
    stage_to_rank: StageToRank,
    pieces: Sequence[str],
    durations: Mapping[StageKind, Time],
) -> tuple[ActionList, ...]:
    """The lists with the lookups of these embedding pieces; a file's own lookups stay where they are.

    Raises:
        PlanError: a file's lookups are of other ranks than those that hold rows.
    """
    ranks = {rank for rank, piece in enumerate(pieces) if piece} | ({stage_to_rank[0]} if pieces else set())
    given = {stage_to_rank[stage] for stage in lookup_stages(lists) if stage < len(stage_to_rank)}
    if given and given != ranks:
        wanted = f"rows are on ranks {sorted(ranks)}" if ranks else "pipeline.embedding_rows is not given"
        raise PlanError(
            f"the schedule looks rows up on pipeline ranks {sorted(given)}, but {wanted}; correct either of them"
        )
    return with_lookups(lists, stage_to_rank, sorted(ranks), durations) if ranks and not given else tuple(lists)


def _recompute_of(given: RecomputeKind | Sequence[RecomputeKind], num_stages: int) -> Sequence[RecomputeKind]:
    """What every stage forgets."""
    if isinstance(given, str):
        return [given] * num_stages
    demand_word_each(given, num_stages)
    return given


def batch_of(deployment: Deployment) -> Batch:
    """The batch that a plan is made for.

    Raises:
        PlanError: there is none.
    """
    if deployment.batch is None:
        raise PlanError(
            f"{deployment.name}: a plan needs [batch] with global_batch_size, microbatch_size and sequence_length; "
            "add the table"
        )
    return deployment.batch


def _num_microbatches(batch: Batch, mesh: Mesh) -> int:
    at_once = mesh.dp_degree * batch.microbatch_size
    num_microbatches, rest = divmod(batch.global_batch_size, at_once)
    if rest == 0:
        return num_microbatches
    raise PlanError(
        f"batch.global_batch_size = {batch.global_batch_size} does not divide into {mesh.dp_degree} data-parallel "
        f"replicas of microbatches of {batch.microbatch_size}: use {_valid_sizes(batch, mesh.dp_degree)}"
    )


def _valid_sizes(batch: Batch, dp_degree: int) -> str:
    """The nearest global batch sizes that divide, and the nearest microbatch sizes that divide this one."""
    at_once = dp_degree * batch.microbatch_size
    below = batch.global_batch_size // at_once * at_once
    valid = [f"global_batch_size {' or '.join(str(size) for size in (below, below + at_once) if size)}"]
    share, rest = divmod(batch.global_batch_size, dp_degree)
    if rest == 0:
        smaller = max(size for size in range(1, min(share, batch.microbatch_size) + 1) if share % size == 0)
        larger = min((size for size in range(batch.microbatch_size, share + 1) if share % size == 0), default=smaller)
        valid.append("microbatch_size " + " or ".join(map(str, sorted({smaller, larger}))))
    return ", or ".join(valid)


def _checked(
    lists: Sequence[ActionList], stage_to_rank: StageToRank, num_microbatches: int, workload: str
) -> CheckResult:
    checked = check(lists, stage_to_rank, num_microbatches, workload)
    if checked.findings:
        more = len(checked.findings) - 1
        rest = f" (and {more} more findings)" if more else ""
        raise PlanError(f"the schedule is wrong: {checked.findings[0]}{rest}")
    return checked
