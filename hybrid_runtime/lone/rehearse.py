"""Rehearses a deployment on this machine's one device; `hybrid-runtime rehearse` starts it and judges what it wrote.

    python -m hybrid_runtime.lone.rehearse FILE --run-folder FOLDER [--plan plan.json] [--alone]

    on a CPU   A B C C B A A B C ...   all ranks built, one step each in turn, so that drifts of the machine cancel
    on a GPU   A B C C B A             one rank built at a time, so that the allocator's peak is its own; 8 steps each

Before steps count there are three others: the optimizer makes its state, then the byte ledger watches two. On a CPU
companions (`company.py`) keep the machine as busy as the rank's peers would.

A declared baseline is rehearsed after it, into FOLDER/baseline/, where the targets speak of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from hybrid_runtime.comm.start import Launch, choose_device
from hybrid_runtime.company import Company
from hybrid_runtime.deployment import Deployment, load_deployment
from hybrid_runtime.errors import EnvironmentProblem, PlanError, UsageError
from hybrid_runtime.fingerprint import fingerprint
from hybrid_runtime.lone.company import Companions, company_for
from hybrid_runtime.lone.ending import ended
from hybrid_runtime.lone.rank import LoneRank, Stage, free_bytes, least_bytes, peer, set_stage
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.given import adopted, read_given, resolved
from hybrid_runtime.planner.make import baseline_deployment, make_plan
from hybrid_runtime.records import Host
from hybrid_runtime.rehearsal import FILE, Rehearsal, RehearsedRank
from hybrid_runtime.run_folder import RunFolder, write_whole
from hybrid_runtime.telemetry.host import cpu_name, find_gpu, settle, versions
from hybrid_runtime.telemetry.machine import machine

STEPS_PER_TURN = 8  # where a rank is built for each of its two turns
ROUNDS, MOST_ROUNDS = 12, 60  # where all are built: one step of each rank in a round
ROUNDS_S = 15.0  # short steps are measured for about so long
_PROCESS_BYTES = 400 * 2**20  # of a companion beside its rank: Python and torch

Tick = Callable[[str], None]


def rehearse(
    deployment: Deployment, plan: Plan, device: torch.device, host: Host, tick: Tick, *, alone: bool = False
) -> Rehearsal:
    """Runs every pipeline rank of the plan alone: on a CPU among companions that are as busy as its peers would be.

    Args:
        device: one CUDA device or the CPU; CPU ranks are measured with one thread.
        host: this one.
        tick: told what is done next.
        alone: without companions.

    Raises:
        EnvironmentProblem: a rank does not fit on the device.
        RunError: a companion was lost.
        UsageError, PlanError: the model cannot be built or run.
    """
    stage = set_stage(deployment, plan, model_units(deployment.model, deployment.shape), device)
    company = Company(why="--alone") if alone else _company_of(stage, host.available_cores)
    tick(f"{company.processes} companions" if company.processes else "building")
    works = [partial(peer, deployment, plan, rank) for rank in range(1, 1 + company.processes)]
    with Companions(works) if device.type == "cpu" else nullcontext():
        order, ranks = _all_built(stage, tick) if _fits_together(stage) else _one_by_one(stage, tick)
        other_shards = _other_shards(stage, tick)
    gpu = find_gpu(device.index or 0) if device.type == "cuda" else None
    name = cpu_name() if gpu is None else gpu.name
    return Rehearsal(
        taken_utc=datetime.now(UTC).isoformat(),
        plan_fingerprint=plan.fingerprint,
        device=name,
        clock="thread_cpu" if gpu is None else "cuda_event",
        fingerprint=fingerprint(machine(), versions(), host=host.name, device=name, threads_per_rank=_threads(stage)),
        order=tuple(order),
        notes=tuple(_notes(stage)),
        company=company,
        ranks=tuple(ranks),
        other_shards=tuple(other_shards),
    )


def _company_of(stage: Stage, available_cores: int) -> Company:
    """As many companions as a real run here would have ranks beside the measured one, if they fit beside it."""
    if stage.device.type != "cpu":
        return Company(why="on a GPU a rank shares its device with nobody")
    hardware, plan = stage.deployment.hardware, stage.plan
    wanted = company_for(plan.mesh.world_size, available_cores, oversubscribe=hardware.oversubscribe)
    there = free_bytes(stage.device)
    if there is None:
        return wanted
    own = sum(least_bytes(stage, pp_rank) for pp_rank in range(plan.pp_degree))
    each = _PROCESS_BYTES + 2 * max(least_bytes(stage, pp_rank) for pp_rank in range(plan.pp_degree))
    fitting = max(0, (there // 2 - own) // each)
    if wanted.processes <= fitting:
        return wanted
    return Company(processes=fitting, why=f"no more fit into {there / 2**30:.1f} GiB; wanted: {wanted.why}")


def _fits_together(stage: Stage) -> bool:
    """All ranks may be built at once where that hides no rank's own peak: not on a GPU, whose allocator they share."""
    there = free_bytes(stage.device)
    needed = sum(least_bytes(stage, pp_rank) for pp_rank in range(stage.plan.pp_degree))
    return stage.device.type == "cpu" and (there is None or 4 * needed < there)


def _all_built(stage: Stage, tick: Tick) -> tuple[list[int], list[RehearsedRank]]:
    """Rounds of one step of every rank, forwards and backwards in turn."""
    order: list[int] = []
    with ExitStack() as stack:
        ranks = [stack.enter_context(LoneRank(stage, pp_rank)) for pp_rank in range(stage.plan.pp_degree)]
        for rank in ranks:
            tick(f"rank {rank.pp_rank}, warm-up")
            rank.warm_up()
        rounds = int(ROUNDS_S * 1e9 / max(1, sum(rank.last_window_ns for rank in ranks)))
        rounds = max(ROUNDS, min(MOST_ROUNDS, rounds))
        for number in range(rounds):
            tick(f"round {number + 1} of {rounds}")
            for rank in ranks if number % 2 == 0 else reversed(ranks):
                rank.measure(1, visit=number)
                order.append(rank.pp_rank)
        return order, [rank.rehearsed() for rank in ranks]


def _one_by_one(stage: Stage, tick: Tick) -> tuple[list[int], list[RehearsedRank]]:
    """Every rank has the device for itself, twice."""
    places = range(stage.plan.pp_degree)
    order = [*places, *reversed(places)]
    turns: dict[int, list[RehearsedRank]] = {pp_rank: [] for pp_rank in places}
    for number, pp_rank in enumerate(order):
        tick(f"rank {pp_rank}, turn {number + 1} of {len(order)}")
        with LoneRank(stage, pp_rank) as rank:
            rank.warm_up()
            rank.measure(STEPS_PER_TURN, visit=number)
            turns[pp_rank].append(rank.rehearsed())
    return order, [_joined(found) for found in turns.values()]


def _joined(turns: Sequence[RehearsedRank]) -> RehearsedRank:
    """A rank's turns as one."""
    memory = tuple(found for turn in turns for found in turn.memory)
    return turns[0].model_copy(update={"memory": memory, "steps": tuple(step for turn in turns for step in turn.steps)})


def _other_shards(stage: Stage, tick: Tick) -> list[RehearsedRank]:
    """Where ranks share key/value heads, not all shards are the same part of the model: the last one is run as well."""
    shape, tp_degree = stage.deployment.shape, stage.plan.tp_degree
    if shape is None or tp_degree <= shape.num_kv_heads:
        return []
    tick("rank 0, its last tensor-parallel shard")
    with LoneRank(stage, 0, tp_degree - 1) as rank:
        rank.warm_up()
        rank.measure(STEPS_PER_TURN, visit=0)
        return [rank.rehearsed()]


def _threads(stage: Stage) -> int:
    return 1 if stage.device.type == "cpu" else stage.deployment.hardware.threads_per_rank


def _notes(stage: Stage) -> list[str]:
    notes = []
    if stage.deployment.shape is not None:
        notes.append("tokens and weights were random")
    wanted = stage.deployment.hardware.threads_per_rank
    if stage.device.type == "cpu" and wanted != 1:
        notes.append(f"every rank ran with 1 thread, the file gives it {wanted}")
    if stage.plan.tp_degree > 1 and any("I" in action for row in stage.plan.actions for action in row):
        notes.append("collectives were free, so no weight gradient was computed during one: a real rank may hold less")
    return notes


def planned(file: Path, plan_file: Path | None) -> tuple[Deployment, Plan]:
    """The deployment and its plan, made now or given.

    Raises:
        UsageError: no model or batch.
        PlanError: there is no plan, or the given one is for other work.
    """
    deployment = load_deployment(file)
    missing = " and ".join(name for name in ("model", "batch") if getattr(deployment, name) is None)
    if missing:
        raise UsageError(f"{deployment.name}: a rehearsal needs the table(s) {missing}; add them")
    given = None if plan_file is None else read_given(plan_file)
    if given is not None:
        deployment = resolved(deployment, given, str(plan_file))
    costs = model_costs(deployment, model_units(deployment.model, deployment.shape))
    plan = make_plan(deployment, costs) if given is None else adopted(given, costs, str(plan_file))
    return deployment, plan


def rehearse_into(folder: RunFolder, file: Path, plan_file: Path | None, *, quiet: bool, alone: bool = False) -> None:
    """Writes deployment.json, plan.json and rehearsal.json; the same of the baseline below, or why it cannot be."""
    deployment, plan = planned(file, plan_file)
    device, _ = choose_device(deployment.hardware, Launch(0, 0, 1, 1))
    host = settle(0, 1, 1, pin=False)
    torch.set_num_threads(1 if device.type == "cpu" else deployment.hardware.threads_per_rank)
    with nullcontext() if quiet else Progress(console=Console(stderr=True), transient=True) as shown:

        def side(where: RunFolder, deployment: Deployment, plan: Plan, what: str) -> None:
            where.path.mkdir(parents=True, exist_ok=True)
            task = None if shown is None else shown.add_task(what, total=None)

            def tick(words: str) -> None:
                if shown is not None and task is not None:
                    shown.update(task, description=f"{what}: {words}")

            write_whole(where.deployment, deployment.canonical_json())
            write_whole(where.plan, plan.to_json())
            write_whole(where.path / FILE, rehearse(deployment, plan, device, host, tick, alone=alone).to_json())

        side(folder, deployment, plan, "rehearsing")
        if wants_baseline(deployment):
            folder.baseline.path.mkdir(parents=True, exist_ok=True)
            try:
                other = baseline_deployment(deployment)
                costs = model_costs(other, model_units(other.model, other.shape))
                side(folder.baseline, other, make_plan(other, costs), "baseline")
            except (PlanError, EnvironmentProblem) as problem:
                write_whole(folder.baseline.infeasible, str(problem))


def wants_baseline(deployment: Deployment) -> bool:
    """Whether a target is about speed against a declared baseline."""
    targets = deployment.targets
    promised = targets.latency_reduction_percent, targets.throughput_gain_percent
    return deployment.baseline is not None and promised != (None, None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the process that rehearses. Prints sentences, not tracebacks."""
    parser = argparse.ArgumentParser(prog="hybrid_runtime.lone.rehearse", description="Runs each rank alone.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--run-folder", type=Path, required=True)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run_folder)
    return ended(lambda: rehearse_into(folder, options.file, options.plan, quiet=options.quiet, alone=options.alone))


if __name__ == "__main__":
    raise SystemExit(main())
