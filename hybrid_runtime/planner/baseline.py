"""The deployment of the declared baseline: the same model, data, batch and seed on other parallel degrees.

    kind             degrees                     microbatch                       schedule
    single           1 rank                      as declared, else candidate's    candidate's
    tp_only          tp = N                      as declared, else candidate's    candidate's
    pp_only          pp = N                      as declared, else candidate's    candidate's
    dp_only          dp = N                      as declared, else candidate's    candidate's
    naive_pipeline   the candidate's             one per replica: global / dp     gpipe
                     where requests are served   the candidate's, one in flight   the candidate's

N is `baseline.devices`, or the candidate's number of ranks. A single pipeline rank has nothing to schedule: unless the
candidate's is gpipe, it runs 1f1b. So do other pp degrees where the candidate's schedule is a file, made for its own.
"""

from __future__ import annotations

from typing import get_args

from hybrid_runtime.deployment import Baseline, BaselineKind, Batch, Deployment, Hardware, Parallel, Pipeline
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.schedule.choose import is_file, place


def baseline_deployment(deployment: Deployment, kind: BaselineKind | None = None) -> Deployment:
    """What the candidate is measured against; it promises nothing itself and demands nothing more of the machine.

    Args:
        kind: another than the declared one, with as many devices as that kind can use of the candidate's.

    Raises:
        PlanError: no baseline is declared, there is no batch, or the declared devices do not fit the kind.
    """
    if deployment.baseline is None:
        raise PlanError(f"{deployment.name}: no [baseline] is declared, so there is nothing to compare with; add one")
    if deployment.batch is None:
        raise PlanError(f"{deployment.name}: a baseline needs [batch]; add the table")
    baseline = deployment.baseline if kind is None else Baseline(kind=kind)
    if deployment.serves and baseline.kind == "dp_only":
        raise PlanError("baseline dp_only: replicas that serve share nothing; name another kind")
    mesh = _mesh(baseline, deployment.mesh)
    return Deployment(
        name=f"{deployment.name[:70]} baseline {baseline.kind}",
        model=deployment.model,
        parallel=_parallel(deployment, mesh),
        pipeline=_pipeline(deployment, baseline, mesh),
        batch=_serving_batch(deployment.batch, baseline)
        if deployment.serves
        else _batch(deployment.batch, baseline, mesh),
        workload=deployment.workload,
        optimizer=deployment.optimizer,
        data=deployment.data,
        hardware=Hardware(
            device=deployment.hardware.device,
            oversubscribe=deployment.hardware.oversubscribe,
            threads_per_rank=deployment.hardware.threads_per_rank,
        ),
        measurement=deployment.measurement,
        load=deployment.load,
    )


def with_all_baselines(deployment: Deployment) -> Deployment:
    """The deployment with every other kind of baseline to be run beside the declared one; the impossible drop out.

    Raises:
        PlanError: no baseline is declared.
    """
    if deployment.baseline is None:
        raise PlanError(
            f"{deployment.name}: no [baseline] is declared, so there is nothing to put others beside; add one"
        )
    others = [kind for kind in get_args(BaselineKind) if kind != deployment.baseline.kind]
    return deployment.model_copy(update={"baseline": deployment.baseline.model_copy(update={"others": others})})


def _mesh(baseline: Baseline, candidate: Mesh) -> Mesh:
    ranks = baseline.devices or candidate.world_size
    match baseline.kind:
        case "single":
            _demand_devices(baseline, 1)
            return Mesh()
        case "tp_only":
            return Mesh(tp_degree=ranks)
        case "pp_only":
            return Mesh(pp_degree=ranks)
        case "dp_only":
            return Mesh(dp_degree=ranks)
        case "naive_pipeline":
            _demand_devices(baseline, candidate.world_size)
            return candidate


def _demand_devices(baseline: Baseline, devices: int) -> None:
    if baseline.devices not in (None, devices):
        raise PlanError(
            f"baseline.devices = {baseline.devices}: a {baseline.kind} baseline has {devices} rank(s) here; "
            "leave devices out"
        )


def _parallel(deployment: Deployment, mesh: Mesh) -> Parallel:
    return Parallel(
        tp_degree=mesh.tp_degree,
        pp_degree=mesh.pp_degree,
        dp_degree=mesh.dp_degree,
        sequence_parallel=deployment.parallel.sequence_parallel and mesh.tp_degree > 1,
        shard_optimizer=deployment.parallel.shard_optimizer and mesh.dp_degree > 1,
    )


def _pipeline(deployment: Deployment, baseline: Baseline, mesh: Mesh) -> Pipeline:
    """Explicit cuts were written for the candidate's stages; for others they are replaced by balanced ones. The
    embedding's rows stay sharded where the mesh is the same."""
    candidate = deployment.pipeline
    naive = baseline.kind == "naive_pipeline" and not deployment.serves
    schedule = "gpipe" if naive else _schedule(candidate.schedule, mesh.pp_degree, deployment.mesh.pp_degree)
    virtual_stages = candidate.virtual_stages if schedule == candidate.schedule else None
    cuts = candidate.cuts
    if not isinstance(cuts, str):
        fit = mesh == deployment.mesh and len(place(schedule, mesh.pp_degree, virtual_stages)) == len(cuts)
        cuts = cuts if fit else "balanced"
    rows = candidate.embedding_rows if mesh == deployment.mesh else None
    limit = candidate.in_flight_limit if schedule == candidate.schedule else None
    return Pipeline(
        schedule=schedule, virtual_stages=virtual_stages, in_flight_limit=limit, cuts=cuts, embedding_rows=rows
    )


def _schedule(candidates: str, pp_degree: int, candidates_pp_degree: int) -> str:
    made_for_another = is_file(candidates) and pp_degree != candidates_pp_degree
    return "1f1b" if made_for_another or (pp_degree == 1 and candidates != "gpipe") else candidates


def _batch(batch: Batch, baseline: Baseline, mesh: Mesh) -> Batch:
    microbatch_size = baseline.microbatch_size or batch.microbatch_size
    if baseline.kind == "naive_pipeline":
        microbatch_size = _whole_share(batch, baseline, mesh)
    return Batch(
        global_batch_size=batch.global_batch_size,
        microbatch_size=microbatch_size,
        sequence_length=batch.sequence_length,
    )


def _serving_batch(batch: Batch, baseline: Baseline) -> Batch:
    """As many cache slots; a naive pipeline lets a microbatch in when the one before has left."""
    if baseline.kind == "naive_pipeline" and baseline.microbatch_size not in (None, batch.microbatch_size):
        raise PlanError(
            f"baseline.microbatch_size = {baseline.microbatch_size}: a naive pipeline serves the candidate's "
            "microbatches one at a time; leave microbatch_size out"
        )
    in_flight = 1 if baseline.kind == "naive_pipeline" else batch.items_in_flight
    microbatch_size = baseline.microbatch_size or batch.microbatch_size
    return batch.model_copy(update={"microbatch_size": microbatch_size, "items_in_flight": in_flight})


def _whole_share(batch: Batch, baseline: Baseline, mesh: Mesh) -> int:
    share, rest = divmod(batch.global_batch_size, mesh.dp_degree)
    if rest:
        raise PlanError(
            f"batch.global_batch_size = {batch.global_batch_size} does not divide into {mesh.dp_degree} data-parallel "
            f"replicas: use {share * mesh.dp_degree or mesh.dp_degree} or {(share + 1) * mesh.dp_degree}"
        )
    if baseline.microbatch_size not in (None, share):
        raise PlanError(
            f"baseline.microbatch_size = {baseline.microbatch_size}: a naive pipeline has one microbatch of {share} "
            "sequences per replica; leave microbatch_size out"
        )
    return share
