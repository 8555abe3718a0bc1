"""Run folders without a run: deployment, plan and records whose every figure is chosen.

    write_run(folder, Synthetic(compute_ns=[[33, 33, 34]] * 120), deployment(targets={"compute_balance_pp": 1}))

One pipeline rank per column of `compute_ns`, unless `mesh` says otherwise. Measured steps follow `WARMUP` warm-up
steps; with a baseline, blocks are laid out in time in the order A B B A ... (or as `order` says).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, cast

from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.plan import Plan, Prediction, StagePlan, UnitCost
from hybrid_runtime.planted import BASE_UNITS, part_name, part_units
from hybrid_runtime.predicted import LABELS, PredictedRank, PredictedStep, RankMemory, RankTime, Source, TimeInterval
from hybrid_runtime.records import (
    REDUCE_GRAD,
    Device,
    Footer,
    Header,
    Host,
    Memory,
    Span,
    StepRecord,
    Wait,
    to_line,
)
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verdict import Claim
from hybrid_runtime.verifier.judge import judge

WARMUP = 4
LEDGER_STEPS = (1, 2, 3)
MS = 1_000_000  # ns


@dataclass(frozen=True)
class Synthetic:
    """One side.

    Attributes:
        compute_ns: per measured step and rank.
        cpu_ns: what the thread clock says; the same as `compute_ns` unless given.
        window_ns: per measured step; a little more than the longest compute unless given.
        wait_ns: one wait inside the compute span of every rank and step; a list gives one per rank.
        memory_bytes: per rank; a list of rows gives one per ledger step.
        reserved_factor: what the CUDA allocator keeps, in multiples of what it uses.
        owned: every rank has a core (or GPU) of its own.
        header: fields of every header to replace, e.g. {"backend": "nccl"}.
        predicted: what the plan predicts of itself.
    """

    compute_ns: Sequence[Sequence[int]]
    cpu_ns: Sequence[Sequence[int]] | None = None
    window_ns: Sequence[int] | None = None
    wait_ns: int | Sequence[int] = 0
    block_steps: int = 10
    memory_bytes: Sequence[int] | Sequence[Sequence[int]] = ()
    reserved_factor: int = 1
    flops: Sequence[int] = ()
    loss: float | None = 5.5
    grad_norm: float | None = 1.5
    tokens: int = 1024
    foreign_percent: int = 0
    owned: bool = True
    kind: Literal["cpu", "cuda"] = "cpu"
    threads_per_rank: int = 1
    device_bytes: int | None = None
    mesh: Mesh | None = None
    header: Mapping[str, Any] = field(default_factory=dict)
    predicted: PredictedStep | None = None

    @property
    def ranks(self) -> int:
        return len(self.compute_ns[0])

    @property
    def shape(self) -> Mesh:
        return self.mesh or Mesh(pp_degree=self.ranks)

    def window(self, step: int) -> int:
        if self.window_ns is not None:
            return self.window_ns[step]
        return max(time + self.wait(rank) for rank, time in enumerate(self.compute_ns[step])) + 1000

    def wait(self, rank: int) -> int:
        return self.wait_ns if isinstance(self.wait_ns, int) else self.wait_ns[rank]


def steady(compute_ns: Sequence[int], steps: int = 120, **more: Any) -> Synthetic:
    """The same figures in every step."""
    return Synthetic([list(compute_ns)] * steps, **more)


def noisy(
    mean_ns: Sequence[int], cv: float, seed: int, steps: int = 120, correlation: float = 0.0, **more: Any
) -> Synthetic:
    """Normal noise of a coefficient of variation, independent between ranks, correlated from step to step."""
    chance = random.Random(seed)
    state = [chance.gauss(0, 1) for _ in mean_ns]
    rows = []
    for _ in range(steps):
        rows.append([max(1, round(mean * (1 + cv * noise))) for mean, noise in zip(mean_ns, state, strict=True)])
        fresh = (1 - correlation**2) ** 0.5
        state = [correlation * noise + fresh * chance.gauss(0, 1) for noise in state]
    return Synthetic(rows, **more)


def deployment(mesh: Mesh = Mesh(pp_degree=3), **tables: Any) -> Deployment:  # noqa: B008 - frozen
    """A runnable deployment for a mesh; `tables` are merged over it, e.g. targets={"utilisation_percent": 90}."""
    values: dict[str, Any] = {
        "name": "synthetic",
        "model": {"preset": "tiny"},
        "parallel": {name: getattr(mesh, name) for name in ("tp_degree", "pp_degree", "dp_degree")},
        "batch": {"global_batch_size": 8, "microbatch_size": 2, "sequence_length": 128},
        "measurement": {"warmup_steps": WARMUP} | tables.pop("measurement", {}),
    }
    return parse_deployment(values | tables, source="synthetic")


def plan_for(deployed: Deployment) -> Plan:
    """A plan of forward and backward actions, one stage per pipeline rank; its FLOPs are made up."""
    mesh, shape = deployed.mesh, deployed.shape
    assert shape is not None
    assert deployed.batch is not None
    names, p = shape.unit_names(), mesh.pp_degree
    edges = [round(index * len(names) / p) for index in range(p + 1)]
    return Plan(
        name=deployed.name,
        workload="train",
        tp_degree=mesh.tp_degree,
        pp_degree=p,
        dp_degree=mesh.dp_degree,
        sequence_parallel=False,
        schedule="gpipe",
        global_batch_size=deployed.batch.global_batch_size,
        microbatch_size=deployed.batch.microbatch_size,
        num_microbatches=deployed.num_microbatches,
        sequence_length=deployed.batch.sequence_length,
        stages=tuple(StagePlan(index=k, pp_rank=k, units=names[edges[k] : edges[k + 1]]) for k in range(p)),
        units=tuple(
            UnitCost(name=name, forward_flops=10, input_grad_flops=10, weight_grad_flops=10, parameters=5)
            for name in names
        ),
        actions=tuple((f"{k}F0", f"{k}B0") for k in range(p)),
        prediction=Prediction(
            stage_flops=(100,) * p,
            stage_parameters=(10,) * p,
            peak_in_flight=(1,) * p,
            receive_depth={},
            ideal_busy_ppm=(900_000,) * p,
        ),
    )


def abba(blocks: int) -> Iterator[tuple[str, int]]:
    """(side, block) of the bare blocks, numbered from 1, in the order in which `turns.rounds` runs them."""
    for block in range(1, blocks + 1):
        pair = ("candidate", "baseline") if block % 2 else ("baseline", "candidate")
        yield from ((side, block) for side in pair)


def write_run(
    folder: Path,
    candidate: Synthetic,
    deployed: Deployment | None = None,
    *,
    baseline: Synthetic | None = None,
    baseline_deployed: Deployment | None = None,
    order: Sequence[tuple[str, int]] | None = None,
) -> Path:
    """Writes a whole run folder and returns it; `order` lists (side, block) in time, blocks from 1."""
    deployed = deployed or deployment(candidate.shape)
    blocks = max(_blocks(candidate), _blocks(baseline) if baseline else 0)
    starts = _starts(candidate, baseline, list(order or abba(blocks)))
    _write_side(folder, candidate, deployed, starts["candidate"])
    if baseline is not None:
        other = baseline_deployed or deployment(baseline.shape)
        _write_side(RunFolder(folder).baseline.path, baseline, other, starts["baseline"])
    return folder


def append_steps(folder: Path, steps: Sequence[Sequence[StepRecord]], side: str = "candidate") -> Path:
    """Adds steps (one record per rank each) behind those that are there; they get the next block and step numbers."""
    files = RunFolder(folder) if side == "candidate" else RunFolder(folder).baseline
    for rank in range(len(steps[0])):
        path = files.records / f"rank{rank}.jsonl"
        *lines, _ = path.read_text().splitlines(keepends=True)
        last = StepRecord.model_validate_json(lines[-1])
        shift = last.end_ns - steps[0][0].start_ns + 10 * MS
        for k, row in enumerate(steps, start=1):
            moved = {"step": last.step + k, "block": last.block + 1 + row[rank].block}
            lines.append(to_line(_moved(row[rank], shift).model_copy(update=moved)))
        lines.append(to_line(Footer(steps=last.step + 1 + len(steps), finished_utc="2026-01-01T00:00:00+00:00")))
        path.write_text("".join(lines))
    return folder


def _moved(step: StepRecord, shift_ns: int) -> StepRecord:
    spans = tuple(
        span._replace(start_ns=span.start_ns + shift_ns, end_ns=span.end_ns + shift_ns) for span in step.spans
    )
    return step.model_copy(
        update={"start_ns": step.start_ns + shift_ns, "end_ns": step.end_ns + shift_ns, "spans": spans}
    )


def bare_step(window_ns: int, start_ns: int, ranks: int, block: int, purpose: str = "speed") -> list[StepRecord]:
    """One step of every rank without spans; the last rank knows the loss."""
    side = steady([MS] * ranks, 1, window_ns=[window_ns])
    rows = [_step(side, rank, 0, start_ns) for rank in range(ranks)]
    return [row.model_copy(update={"spans": (), "waits": (), "purpose": purpose, "block": block}) for row in rows]


def planted_step(unit_ns: Sequence[int], number: int, start_ns: int) -> list[StepRecord]:
    """One planted step: rank `number` mod ranks does the extra work; a unit takes `unit_ns` of each rank."""
    ranks, rows = len(unit_ns), []
    for rank, unit in enumerate(unit_ns):
        units = [BASE_UNITS, *(part_units(ranks) if rank == number % ranks else ())]
        ends = list(accumulate((count * unit for count in units), initial=start_ns))
        spans = tuple(
            Span(part_name(part), start, end, end - start, 0) for part, (start, end) in enumerate(pairwise(ends))
        )
        record = _step(steady([MS] * ranks, 1), rank, 0, start_ns)
        update = {"spans": spans, "waits": (), "purpose": "planted", "loss": None, "grad_norm": None, "tokens": 0}
        rows.append(record.model_copy(update=update | {"block": 0, "end_ns": start_ns + 10**9}))
    return rows


def planted(extra_pp: float, cv: float = 0.0, seed: int = 0, steps: int = 120, **more: Any) -> Synthetic:
    """Three ranks whose shares range over exactly `extra_pp` percentage points, 30 ms of compute in all."""
    extra = round(300_000 * extra_pp)  # 1 pp of 30 ms
    mean = [10 * MS - extra // 2, 10 * MS, 10 * MS + extra // 2]
    return noisy(mean, cv, seed, steps, **more) if cv else steady(mean, steps, **more)


def prediction(
    step_ns: int,
    compute_ns: Sequence[int],
    memory_bytes: Sequence[int],
    *,
    spread: Fraction = Fraction(1, 10),
    fingerprint: Mapping[str, str] | None = None,
) -> PredictedStep:
    """A prediction: a third of the compute is forward, the rest backward; what is left of the step is idle."""
    ranks = tuple(
        PredictedRank(
            pp_rank=rank,
            time=RankTime(forward_ns=time // 3, backward_ns=time - time // 3, idle_ns=step_ns - time),
            memory=RankMemory(parameters=100, gradients=100, optimizer=200, activations=held - 400, buffers=0),
            flops=1000,
        )
        for rank, (time, held) in enumerate(zip(compute_ns, memory_bytes, strict=True))
    )
    around = round(step_ns * spread)
    source: Source = "rehearsal" if fingerprint else "records"
    return PredictedStep(
        step_time=TimeInterval(p10_ns=step_ns - around, p50_ns=step_ns, p90_ns=step_ns + around),
        pipeline_ns=step_ns,
        bound_ns=step_ns,
        ranks=ranks,
        labels=LABELS[source],
        source=source,
        fingerprint=dict(fingerprint or {}),
    )


def judged(folder: Path, side: Synthetic, name: str, **tables: Any) -> Claim:
    """The row of one claim about a side alone."""
    verdict = judge(write_run(folder, side, deployment(side.shape, **tables)))
    return next(row for row in verdict.claims if row.id == name)


def rewrite(run: Path, edit: Callable[[int, dict[str, Any]], dict[str, Any] | None], pattern: str = "rank*") -> None:
    """Forges every rank's records: `edit` gets rank and record, and returns the record to write, or None to drop it."""
    for path in sorted(run.glob(f"records/{pattern}.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        rank = records[0]["rank"]
        kept = [new for record in records if (new := edit(rank, record)) is not None]
        steps = [record for record in kept if record["type"] == "step"]
        for number, step in enumerate(steps):
            step["step"] = number
        if kept[-1]["type"] == "footer":
            kept[-1]["steps"] = len(steps)
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))


def _blocks(side: Synthetic) -> int:
    return -(-len(side.compute_ns) // side.block_steps)


def _starts(candidate: Synthetic, baseline: Synthetic | None, order: Sequence[tuple[str, int]]) -> dict[str, list[int]]:
    """Start of every measured step of each side, on one clock that begins after both warm-ups."""
    now = 10_000 * MS
    sides = {"candidate": candidate} | ({"baseline": baseline} if baseline else {})
    starts = {name: [0] * len(side.compute_ns) for name, side in sides.items()}
    for name, block in order:
        if name not in sides:
            continue
        side = sides[name]
        first = (block - 1) * side.block_steps
        for step in range(first, min(first + side.block_steps, len(side.compute_ns))):
            starts[name][step] = now
            now += side.window(step) + MS // 10
    return starts


def _write_side(folder: Path, side: Synthetic, deployed: Deployment, starts: Sequence[int]) -> None:
    files = RunFolder(folder).create()
    plan = plan_for(deployed).model_copy(update={"predicted": side.predicted})
    files.deployment.write_text(deployed.canonical_json())
    files.plan.write_text(plan.to_json())
    for rank in range(side.ranks):
        lines = [_header(side, plan, deployed, rank)]
        lines += [to_line(_warmup(side, rank, step)) for step in range(WARMUP)]
        lines += [to_line(_step(side, rank, step, start)) for step, start in enumerate(starts)]
        lines.append(to_line(Footer(steps=WARMUP + len(starts), finished_utc="2026-01-01T00:00:00+00:00")))
        (files.records / f"rank{rank}.jsonl").write_text("".join(lines))


def _header(side: Synthetic, plan: Plan, deployed: Deployment, rank: int) -> str:
    place = plan.mesh.place(rank)
    own = f"GPU-{rank}" if side.kind == "cuda" else f"host:{rank}"
    header = Header(
        plan_fingerprint=plan.fingerprint,
        deployment_fingerprint=deployed.fingerprint,
        rank=rank,
        world_size=side.ranks,
        dp=place.dp,
        pp=place.pp,
        tp=place.tp,
        stages=tuple(stage.index for stage in plan.stages_of(place.pp)),
        device=Device(
            kind=side.kind,
            id=own if side.owned else f"host:rank{rank}",
            name="synthetic",
            owned=side.owned,
            total_bytes=side.device_bytes,
        ),
        host=Host(
            name="host",
            affinity=(rank,) if side.owned else (0, 1),
            available_cores=side.ranks if side.owned else 2,
            threads_per_rank=side.threads_per_rank,
            local_world_size=side.ranks,
        ),
        backend="gloo",
        clock="cuda_event" if side.kind == "cuda" else "wall",
        clock_offset_ns=0,
        clock_uncertainty_ns=0,
        flops_per_step=side.flops[rank] if side.flops else 1000,
        flops_by_kind={},
        started_utc="2026-01-01T00:00:00+00:00",
        versions={},
        environment={},
    )
    return to_line(header.model_copy(update=dict(side.header)))


def _memory(side: Synthetic, rank: int, ledger_step: int | None) -> Memory:
    rows = side.memory_bytes or [1000] * side.ranks
    row = cast(Sequence[int], rows if isinstance(rows[0], int) else rows[(ledger_step or 0) % len(rows)])
    peak = row[rank] if ledger_step is not None else None
    return Memory(
        parameters=100,
        gradients=100,
        optimizer=200,
        activations_peak=peak,
        buffers_peak=0,
        ledger_peak=peak,
        allocated_peak=row[rank] if side.kind == "cuda" else None,
        reserved_peak=row[rank] * side.reserved_factor if side.kind == "cuda" else None,
    )


def _warmup(side: Synthetic, rank: int, step: int) -> StepRecord:
    """Three times slower than measured steps, so that a judge who lets warm-up in is found out."""
    slow = replace(side, compute_ns=[[3 * time for time in side.compute_ns[0]]], cpu_ns=None, window_ns=None)
    record = _step(slow, rank, 0, MS + step * 2 * slow.window(0))
    watched = step in LEDGER_STEPS
    memory = _memory(side, rank, LEDGER_STEPS.index(step) if watched else None)
    return record.model_copy(update={"step": step, "block": 0, "phase": "warmup", "ledger": watched, "memory": memory})


def _step(side: Synthetic, rank: int, step: int, start: int) -> StepRecord:
    compute, window, wait = side.compute_ns[step][rank], side.window(step), side.wait(rank)
    cpu = -1 if side.kind == "cuda" else (side.cpu_ns or side.compute_ns)[step][rank]
    done = start + compute + wait
    stage = side.shape.place(rank).pp
    middle = start + compute // 2
    return StepRecord(
        step=WARMUP + step,
        block=1 + step // side.block_steps,
        phase="measure",
        purpose="trace",
        ledger=False,
        start_ns=start,
        end_ns=start + window,
        loss=None if side.loss is None or stage + 1 < side.shape.pp_degree else repr(side.loss),
        grad_norm=None if side.grad_norm is None else repr(side.grad_norm),
        tokens=side.tokens,
        switches=0,
        cores_busy_ns=window + window * side.foreign_percent // 100,
        process_ns=window,
        memory=_memory(side, rank, None),
        spans=(
            Span(f"{stage}F0", start, middle, cpu // 2 if cpu >= 0 else -1, 0),
            Span(f"{stage}B0", middle, done, cpu - cpu // 2 if cpu >= 0 else -1, wait),
            Span(REDUCE_GRAD, done, done, 0, 0),
        ),
        waits=(Wait("all_reduce", done - wait, done),) if wait else (),
    )
