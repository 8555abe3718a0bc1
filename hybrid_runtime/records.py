"""The raw records of a run and their JSON Lines form: `records/rank<R>.jsonl`, one file per rank.

A file is one `Header`, then one `StepRecord` per step (warm-up included), then one `Footer`. All counters are integers
in nanoseconds and bytes. Times are the host's CLOCK_MONOTONIC (shared by all ranks of one host); `clock_offset_ns`
is added to compare hosts. A missing footer means that the rank did not finish.

Spans. Everything a rank's compute stream does in a step is a `Span`: the pipeline's compute actions under their action
text (`0F3`, `2B1`), and the step's other phases under the names in `PHASES`. An `I` that works off older weight
gradients while a collective is under way is written as several spans, `0I3 0W2 0I3`: they do not nest. Waits for other
ranks are kept apart, as `Wait`s: a wait lies inside the span it delays (a tensor-parallel all-reduce inside `0F3`) or
between spans (a receive).

    compute of a span, wall clock  = end - start - (waits inside it)
    compute of a span, thread_cpu  = cpu_ns          (blocking costs the thread no CPU time; adding up messages does)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hybrid_runtime.errors import RecordsError

SCHEMA_VERSION = "1.1"

# Names of spans that are not pipeline actions. Only COMPUTE_PHASES are work of the device.
REDUCE_GRAD = "REDUCE_GRAD"  # gradients summed over tp, tied copies and dp: communication
OPTIMIZER = "OPTIMIZER"  # clipping and the parameter update
DATA = "DATA"  # the batch is read and copied to the device
PHASES = (REDUCE_GRAD, OPTIMIZER, DATA)
COMPUTE_PHASES = (OPTIMIZER,)

# What a status file says outside of actions; the last four may take as long as they take, and others wait meanwhile.
BETWEEN_STEPS, CHECKPOINT, EXPORT, TURN = "between steps", "CHECKPOINT", "EXPORT", "waiting for its turn"
IDLE = "no request"  # rank 0 of a serving deployment has nothing to do until somebody asks
UNHURRIED = (CHECKPOINT, EXPORT, TURN, IDLE)

# Purposes of a block of steps.
TRACE, SPEED, PLANTED, AGAINST = "trace", "speed", "planted", "against "
TRACED = (TRACE, PLANTED)  # in these, spans and waits are recorded


class Span(NamedTuple):
    """One thing done: an action or phase.

    Attributes:
        name: action text or phase name.
        cpu_ns: CPU time of the rank's own thread inside the span; -1 where it was not taken (CUDA).
        wait_ns: sum of the waits inside the span.
    """

    name: str
    start_ns: int
    end_ns: int
    cpu_ns: int
    wait_ns: int


class Wait(NamedTuple):
    """One wait for other ranks: `all_reduce`, `reduce_scatter`, `1RECV_F3`, `barrier`, ..."""

    name: str
    start_ns: int
    end_ns: int


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(_Record):
    """The physical device of a rank.

    Attributes:
        id: what makes it one device: a GPU UUID, or "host:cores" for an owned CPU core set, or "host:rank3" for a rank
            that shares cores with others (then it is a virtual device, and wall-clock claims are not judged).
        owned: this rank has the device for itself.
    """

    kind: Literal["cpu", "cuda"]
    id: str
    name: str
    owned: bool
    total_bytes: int | None


class Host(_Record):
    """The rank's host as it was found. `affinity` is read back after pinning."""

    name: str
    affinity: tuple[int, ...]
    available_cores: int
    threads_per_rank: int
    local_world_size: int


class Header(_Record):
    """First line of a rank's file: who wrote it, on what, for which plan.

    Attributes:
        machine: what the host is and how it is set, as text by name, from the host's first rank; empty on the others.
        launch: command line, working directory and its git commit, and which launches came before; command line alone
            on ranks other than a host's first.
        earlier_launches: run folders of exactly this deployment that were launched before beside this one (rank 0).
        trained_before: steps that the model had been trained when this run began: those of the checkpoint it resumed.
        peak_flops_per_s: what the device can do at most with the numbers that are multiplied; None where it is not
            known. `peak_source` says whose figure it is, or why there is none.
        asked: `Traffic.fingerprint` of a deployment that serves (rank 0).
    """

    type: Literal["header"] = "header"
    schema_version: str = SCHEMA_VERSION
    plan_fingerprint: str
    deployment_fingerprint: str
    rank: int
    world_size: int
    dp: int
    pp: int
    tp: int
    stages: tuple[int, ...]
    device: Device
    host: Host
    backend: str
    clock: Literal["wall", "cuda_event"]
    clock_offset_ns: int
    clock_uncertainty_ns: int
    flops_per_step: int
    flops_by_kind: dict[str, int]
    started_utc: str
    versions: dict[str, str]
    environment: dict[str, str]
    machine: dict[str, str] = {}
    launch: dict[str, str] = {}
    earlier_launches: tuple[str, ...] = ()
    trained_before: int = 0
    peak_flops_per_s: int | None = None
    peak_source: str = "n/a: not recorded"
    asked: dict[str, str] = {}


class Memory(_Record):
    """Byte ledger of one step on one rank: each storage counted once. Absent fields were not observed in that step.

    Attributes:
        activations_peak: largest sum of saved activations at any instant of the step.
        buffers_peak: largest sum of receive and send buffers.
        kv_cache: keys and values of the sequences that are served, all of their room.
        ledger_peak: parameters + gradients + optimizer + cache + largest (activations + buffers) at one instant.
        allocated_peak / reserved_peak: the CUDA allocator's peaks; None on CPU.
    """

    parameters: int
    gradients: int
    optimizer: int
    kv_cache: int = 0
    activations_peak: int | None
    buffers_peak: int | None
    ledger_peak: int | None
    allocated_peak: int | None
    reserved_peak: int | None


class StepRecord(_Record):
    """One step on one rank.

    Attributes:
        block: which block of the alternation the step belongs to; 0 in a plain run.
        phase: "warmup" steps are never judged; "measure" steps are.
        purpose: what the step's block is for. "trace": spans and waits are recorded, for balance and utilisation (all
            steps of a plain run). "speed": bare steps, window only, for the comparison with the baseline; "against
            KIND": the same for the comparison with another kind of baseline. "planted": the self-test's known work
            instead of the model's.
        ledger: the byte ledger watched this step's activations (only ever in warm-up steps: watching costs time).
        start_ns, end_ns: the rank's own window: from leaving the barrier to being done with the step.
        loss: mean loss over the global batch as a decimal text; None on ranks that do not hold the head.
        grad_norm: global gradient norm before clipping; None for forward-only.
        skipped: its update was not made, because the loss or a gradient was not finite.
        tokens: tokens of the global batch.
        switches: involuntary context switches of the rank's thread in the step; -1 where unknown.
        cores_busy_ns: time the rank's cores were busy with anything, from just before the window to just after it, in
            the kernel's ticks; -1 where unknown.
        process_ns: CPU time of the rank's whole process in the same interval, its communication threads included.
    """

    type: Literal["step"] = "step"
    step: int
    block: int
    phase: Literal["warmup", "measure"]
    purpose: str
    ledger: bool
    start_ns: int
    end_ns: int
    loss: str | None
    grad_norm: str | None
    tokens: int
    skipped: bool = False
    switches: int
    cores_busy_ns: int
    process_ns: int
    memory: Memory
    spans: tuple[Span, ...]
    waits: tuple[Wait, ...]


class Footer(_Record):
    """Last line of a finished rank."""

    type: Literal["footer"] = "footer"
    steps: int
    finished_utc: str


class RankRecords(NamedTuple):
    """One rank's file, parsed."""

    path: Path
    header: Header
    steps: tuple[StepRecord, ...]
    footer: Footer | None

    def measured(self, purpose: str = TRACE) -> Iterator[StepRecord]:
        """The steps that are judged for a purpose, in order."""
        return (step for step in self.steps if step.phase == "measure" and step.purpose == purpose)


_STEP = TypeAdapter(StepRecord)


def to_line(record: Header | StepRecord | Footer) -> str:
    """One record as one line of JSON, newline included."""
    return json.dumps(record.model_dump(mode="json"), separators=(",", ":")) + "\n"


def read_rank(path: Path) -> RankRecords:
    """Parses one rank's file.

    Raises:
        RecordsError: unreadable, no header, or a line that is not a record (named by number).
    """
    header: Header | None = None
    footer: Footer | None = None
    steps: list[StepRecord] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as problem:
        raise RecordsError(f"{path}: cannot be read ({problem.strerror})") from None
    for number, line in enumerate(lines, start=1):
        try:
            values: Any = json.loads(line)
            kind = values["type"]
            if number == 1:
                header = Header.model_validate(values)
            elif kind == "step":
                steps.append(_STEP.validate_python(values))
            else:
                footer = Footer.model_validate(values)
        except (ValueError, TypeError, KeyError, RecursionError) as problem:
            what = problem.errors()[0]["msg"] if isinstance(problem, ValidationError) else str(problem)
            raise RecordsError(
                f"{path}, line {number}: not a record ({what}); the file was cut or edited, make the run again"
            ) from None
    if header is None:
        raise RecordsError(f"{path}: is empty; the rank died before it could write, make the run again")
    if header.schema_version != SCHEMA_VERSION:
        raise RecordsError(
            f"{path}: schema_version {header.schema_version} is not {SCHEMA_VERSION}; make the run again"
        )
    return RankRecords(path, header, tuple(steps), footer)


def read_side(folder: Path, *, finished: bool = True) -> list[RankRecords]:
    """All ranks of one side (`folder/records/rank*.jsonl`), ordered by rank.

    Args:
        finished: a rank without a footer is refused; False while the side is still running.

    Raises:
        RecordsError: no file, a damaged file, a rank missing or twice, ranks of different plans, or an unfinished rank.
    """
    paths = sorted((folder / "records").glob("rank*.jsonl"))
    if not paths:
        raise RecordsError(f"{folder}: holds no records/rank*.jsonl; name a folder that a run wrote")
    ranks = sorted((read_rank(path) for path in paths), key=lambda rank: rank.header.rank)
    world_size = ranks[0].header.world_size
    found = [rank.header.rank for rank in ranks]
    if len(found) != world_size or found != list(range(len(found))):  # a damaged count may be huge
        missing = sorted(set(range(min(world_size, 10**6))) - set(found))
        raise RecordsError(f"{folder}: records of ranks {found}, but {world_size} ranks ran; missing {missing}")
    for rank in ranks:
        if finished and rank.footer is None:
            raise RecordsError(
                f"{rank.path}: has no footer: rank {rank.header.rank} did not finish; make the run again"
            )
        if rank.header.plan_fingerprint != ranks[0].header.plan_fingerprint:
            raise RecordsError(f"{rank.path}: belongs to another plan than rank 0's records; do not mix runs")
        complete = rank.footer is None or len(rank.steps) == rank.footer.steps
        if not complete or any(step.step != k for k, step in enumerate(rank.steps)):
            raise RecordsError(
                f"{rank.path}: steps are missing or out of order; the file was edited, make the run again"
            )
    return ranks
