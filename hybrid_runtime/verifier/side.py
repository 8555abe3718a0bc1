"""One side of a run (candidate or baseline) as read from its folder, checked to be whole and to belong together.

    deployment.json --sha--+
    plan.json -------sha---+--> every header of records/rank*.jsonl --> coordinates, stages, steps agree --> Side

A side that passes these checks is complete and unedited as far as its own fingerprints can tell; what the numbers mean
is decided elsewhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from hybrid_runtime.deployment import Deployment, load_deployment
from hybrid_runtime.errors import RecordsError, UsageError
from hybrid_runtime.plan import Plan, read_plan
from hybrid_runtime.records import COMPUTE_PHASES, PHASES, PLANTED, RankRecords, StepRecord, read_side
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.schedule.actions import Kind, is_action, parse_action
from hybrid_runtime.serving.request_records import RequestRecord, read_requests
from hybrid_runtime.verifier.sequence import check_sequence
from hybrid_runtime.verifier.served_rounds import check_rounds
from hybrid_runtime.verifier.work_done import check_work

Role = Literal["candidate", "baseline"]
_LATEST_NS = 2**63  # a clock counts in 64-bit nanoseconds; anything beyond was not written by one


@dataclass(frozen=True, slots=True)
class Side:
    """One side: what was asked for, what was planned, what every rank wrote down, and what became of requests."""

    folder: Path
    role: Role
    deployment: Deployment
    plan: Plan
    ranks: tuple[RankRecords, ...]
    requests: tuple[RequestRecord, ...] = ()


def load_side(folder: Path, role: Role, *, finished: bool = True) -> Side:
    """Reads and checks one side.

    Args:
        finished: whether every rank must have come to its end; False while sampling goes on.

    Raises:
        RecordsError: a file is missing, damaged or edited, a rank is missing, or the files do not belong together.
        PlanError: plan.json is missing or not a plan.
    """
    files = RunFolder(folder)
    plan = read_plan(files.plan)
    try:
        deployment = load_deployment(files.deployment)
        ranks = tuple(read_side(folder, finished=finished))
    except RecordsError:
        raise
    except UsageError as problem:
        raise RecordsError(f"{problem}; use the file as the run wrote it, or make the run again") from None
    side = Side(folder, role, deployment, plan, ranks, _requests(files, deployment))
    _check_fingerprints(side)
    for rank in ranks:
        _check_place(side, rank)
        _check_steps(side, rank)
    _check_devices(side)
    check_sequence(ranks, deployment)
    if deployment.serves:
        check_rounds(ranks, side.requests, deployment, plan)
    else:
        check_work(ranks, plan)
    return side


def _requests(files: RunFolder, deployment: Deployment) -> tuple[RequestRecord, ...]:
    if deployment.serves:
        return read_requests(files.requests)
    if files.requests.exists():
        raise RecordsError(f"{files.requests}: holds requests, and the deployment serves none; it is of another run")
    return ()


def _check_fingerprints(side: Side) -> None:
    files = RunFolder(side.folder)
    header = side.ranks[0].header
    if hashlib.sha256(files.plan.read_bytes()).hexdigest() != header.plan_fingerprint:
        raise RecordsError(f"{files.plan}: is not the plan that the records were made with; it was edited or replaced")
    if side.plan.mesh != side.deployment.mesh:
        raise RecordsError(f"{files.plan}: is for {side.plan.mesh}, but the deployment is for {side.deployment.mesh}")
    for rank in side.ranks:
        if rank.header.deployment_fingerprint != side.deployment.fingerprint:
            raise RecordsError(
                f"{files.deployment}: is not the deployment that {rank.path.name} was made with; "
                "it was edited or replaced"
            )


def _check_place(side: Side, rank: RankRecords) -> None:
    header, mesh = rank.header, side.plan.mesh
    if header.world_size != mesh.world_size:
        raise RecordsError(
            f"{rank.path}: {header.world_size} ranks ran, but the plan is for {mesh.world_size} ({mesh})"
        )
    place = mesh.place(header.rank)
    if (header.dp, header.pp, header.tp) != (place.dp, place.pp, place.tp):
        raise RecordsError(
            f"{rank.path}: says dp {header.dp}, pp {header.pp}, tp {header.tp}, but the plan puts {place} there"
        )
    planned = tuple(stage.index for stage in side.plan.stages_of(header.pp))
    if header.stages != planned:
        raise RecordsError(f"{rank.path}: held stages {list(header.stages)}, but the plan gives it {list(planned)}")
    peak = header.peak_flops_per_s
    if header.flops_per_step < 0 or header.host.threads_per_rank < 1 or (peak is not None and peak < 1):
        raise RecordsError(f"{rank.path}: the header holds an impossible count; the file was edited")


def _check_steps(side: Side, rank: RankRecords) -> None:
    first = side.ranks[0]
    if rank.header.trained_before != first.header.trained_before:
        raise RecordsError(f"{rank.path}: resumed another checkpoint than {first.path.name}; the file was edited")
    if len(rank.steps) != len(first.steps):
        raise RecordsError(f"{rank.path}: has {len(rank.steps)} steps, but {first.path.name} has {len(first.steps)}")
    for step, other in zip(rank.steps, first.steps, strict=True):
        if (step.block, step.phase, step.purpose, step.tokens) != (
            other.block,
            other.phase,
            other.purpose,
            other.tokens,
        ):
            raise RecordsError(
                f"{rank.path}: step {step.step} differs in block, phase, purpose or tokens from {first.path.name}; "
                "the ranks did not run the same steps"
            )
        _check_times(rank, step)
    blocks = [step.block for step in first.steps]
    if blocks != sorted(blocks):
        raise RecordsError(f"{first.path}: blocks are out of order; the file was edited")


def _check_times(rank: RankRecords, step: StepRecord) -> None:
    where = f"{rank.path}: step {step.step}"
    ordered = 0 <= step.start_ns < step.end_ns < _LATEST_NS
    if not ordered or step.tokens < (step.purpose != PLANTED) or abs(rank.header.clock_offset_ns) >= _LATEST_NS:
        raise RecordsError(f"{where} has an impossible time or token count; the file was edited")
    counts = [count for count in step.memory.model_dump().values() if count is not None]
    counters = (step.switches, step.cores_busy_ns, step.process_ns)
    impossible = any(not 0 <= count < _LATEST_NS for count in counts) or any(
        not -1 <= counter < _LATEST_NS for counter in counters
    )
    if impossible or not _is_number(step.loss):
        raise RecordsError(f"{where} has an impossible byte count, counter or loss; the file was edited")
    for span in step.spans:
        if span.name not in PHASES and not is_action(span.name):
            raise RecordsError(f"{where} holds the unknown span {span.name!r}; the file was edited")
        inside = step.start_ns <= span.start_ns <= span.end_ns <= step.end_ns
        wait_fits = 0 <= span.wait_ns <= span.end_ns - span.start_ns
        if not inside or not wait_fits or not -1 <= span.cpu_ns < _LATEST_NS:
            raise RecordsError(f"{where}: span {span.name} has an impossible time; the file was edited")
    for wait in step.waits:
        if not 0 <= wait.start_ns <= wait.end_ns < _LATEST_NS:
            raise RecordsError(f"{where}: wait {wait.name} has an impossible time; the file was edited")


def _is_number(text: str | None) -> bool:
    try:
        return text is None or isinstance(float(text), float)
    except ValueError:
        return False


@cache
def is_compute(name: str) -> bool:
    """Whether a span of this name is work of the device (and not communication or reading data)."""
    return name in COMPUTE_PHASES or (is_action(name) and parse_action(name).kind.is_compute)


@cache
def is_of_kind(name: str, kind: Kind) -> bool:
    """Whether a span of this name is an action of this kind."""
    return is_action(name) and parse_action(name).kind is kind


def _check_devices(side: Side) -> None:
    headers = [rank.header for rank in side.ranks]
    for attribute, kinds in (
        ("device kinds", {header.device.kind for header in headers}),
        ("clocks", {header.clock for header in headers}),
    ):
        if len(kinds) > 1:
            raise RecordsError(f"{side.folder}: the ranks used different {attribute} ({', '.join(sorted(kinds))})")
    claimed: dict[str, int] = {}
    for header in headers:
        if header.device.owned and header.device.id in claimed:
            raise RecordsError(
                f"{side.folder}: ranks {claimed[header.device.id]} and {header.rank} both say that they own device "
                f"{header.device.id}; the records were edited or the ranks were placed wrongly"
            )
        if header.device.owned:
            claimed[header.device.id] = header.rank
