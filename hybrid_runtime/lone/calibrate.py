"""Calibrates this machine for a deployment's model; `hybrid-runtime calibrate` starts it.

    python -m hybrid_runtime.lone.calibrate FILE --out calibration.json

What this machine cannot show is left out and named with the reason, never made up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from hybrid_runtime.calibration import Calibration, CollectiveTime, ServedItemTimes, model_hash
from hybrid_runtime.comm.start import Launch, choose_device
from hybrid_runtime.company import Company
from hybrid_runtime.data_parallel.buckets import BUCKET_BYTES
from hybrid_runtime.deployment import Deployment, load_deployment
from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.fingerprint import fingerprint
from hybrid_runtime.lone.company import Companions, company_for
from hybrid_runtime.lone.ending import ended
from hybrid_runtime.lone.exchange import Exchanged, exchange, lone_cpu_ns
from hybrid_runtime.lone.overheads import executor_ns, optimizer_costs
from hybrid_runtime.lone.served_items import served_on_one
from hybrid_runtime.lone.served_times import Served, busy_requests, served_times
from hybrid_runtime.lone.unit_times import busy_units, unit_times, wanted_of
from hybrid_runtime.mesh import divisors
from hybrid_runtime.models.build import model_costs
from hybrid_runtime.planner.asked import asked_of, devices_of, sharing_asked
from hybrid_runtime.planner.serving_asked import asked_items
from hybrid_runtime.planner.state_bytes import state_bytes
from hybrid_runtime.run_folder import write_whole
from hybrid_runtime.telemetry.host import cpu_name, find_gpu, settle, versions
from hybrid_runtime.telemetry.machine import machine

Tick = Callable[[str], None]
_LARGEST_BYTES = 256 * 2**20  # of a collective or message
_KINDS = ("all_reduce", "reduce_scatter", "all_gather")


def calibrate(deployment: Deployment, device: torch.device, tick: Tick, *, alone: bool = False) -> Calibration:
    """Measures everything that this machine can show of the deployment's model.

    On a CPU companions (`company.py`) keep the other cores as busy as ranks would, unless it is to be done `alone`.

    Raises:
        EnvironmentProblem: the model's units do not fit on the device.
        UsageError: the model or its batch is missing or cannot be built.
    """
    torch.set_num_threads(1 if device.type == "cpu" else deployment.hardware.threads_per_rank)
    wanted = wanted_of(deployment, device)
    costs = model_costs(deployment, wanted.specs)
    cpu = device.type == "cpu"
    host = settle(0, 1, 1, pin=False)
    parameters = sum(cost.parameters for cost in costs)
    found, not_measured = _exchanged(deployment, parameters, device, host.available_cores, tick)
    company = _company_of(deployment, device, host.available_cores, alone=alone)
    works = [partial(busy_requests if deployment.serves else busy_units, deployment)] * company.processes
    try:
        with Companions(works) if cpu else nullcontext():
            units, left_out = ([], {}) if deployment.serves else unit_times(wanted, tick)
            tick("executor: empty stages")
            action_ns, step_ns = executor_ns(device)
            tick("optimizer")
            optimizer = optimizer_costs(wanted.specs, deployment.optimizer, device, getattr(torch, wanted.dtype))
            served, items = _served(deployment, device, tick)
            collectives = tuple(_with_lone_cpu(row) for world in found for row in world.collectives)
    except (torch.OutOfMemoryError, MemoryError) as problem:
        raise EnvironmentProblem(
            f"{deployment.name}: its units do not fit on {device} ({problem}); use a larger device, or a "
            "smaller [batch] microbatch_size"
        ) from None
    gpu = None if cpu else find_gpu(device.index or 0)
    name = cpu_name() if gpu is None else gpu.name
    threads = 1 if cpu else deployment.hardware.threads_per_rank
    return Calibration(
        taken_utc=datetime.now(UTC).isoformat(),
        fingerprint=fingerprint(machine(), versions(), host=host.name, device=name, threads_per_rank=threads),
        model=model_hash(costs),
        units=tuple(row for row in units if row.recompute == "none"),
        forgetting=tuple(row for row in units if row.recompute != "none"),
        collectives=collectives,
        messages=tuple(row for world in found for row in world.messages),
        overlap=next((world.overlap for world in found if world.overlap), {}),
        device_factors=found[-1].device_factors if found else (),
        action_ns=action_ns,
        step_ns=step_ns,
        optimizer_fixed_ns=optimizer.fixed_ns,
        optimizer_per_million_ns=optimizer.per_million_ns,
        optimizer_bytes_per_parameter=optimizer.optimizer_bytes_per_parameter,
        gradient_bytes_per_parameter=optimizer.gradient_bytes_per_parameter,
        allocator={} if cpu else _allocator(device),
        company=company,
        served=served.rows,
        served_paces=served.paces,
        served_items=(*items, *(row for world in found for row in world.served_items)),
        not_measured=not_measured | left_out | dict(served.left_out),
    )


def _served(deployment: Deployment, device: torch.device, tick: Tick) -> tuple[Served, Sequence[ServedItemTimes]]:
    """Units with items of requests, and what the engine adds on one rank; nothing where no requests are served."""
    if not deployment.serves:
        return Served(), ()
    found = served_times(deployment, device, tick)
    tick("engine: 1 rank")
    return found, served_on_one(deployment) if device.type == "cpu" else ()


def _company_of(deployment: Deployment, device: torch.device, cores: int, *, alone: bool) -> Company:
    """As many companions as a run of the planned devices here would have ranks beside one."""
    if device.type != "cpu" or alone:
        return Company(why="--alone" if alone else "on a GPU a rank shares its device with nobody")
    return company_for(devices_of(deployment), cores, oversubscribe=deployment.hardware.oversubscribe)


def _exchanged(
    deployment: Deployment, parameters: int, device: torch.device, cores: int, tick: Tick
) -> tuple[list[Exchanged], dict[str, str]]:
    """Every group that fits on this machine with a core or GPU for each rank, and the reason for every other.

    Args:
        parameters: of the whole model.
    """
    assert deployment.batch is not None
    places, what = (cores, "cores") if device.type == "cpu" else (torch.cuda.device_count(), "GPUs")
    not_measured = {"between hosts": "calibrate measures on one host"}
    found = []
    for ranks in sorted({2, *divisors(deployment.mesh.world_size)} - {1}):
        if ranks > places:
            why = f"{ranks} ranks, but this machine has {places} {what if places != 1 else what[:-1]}"
            not_measured |= {f"{kind} of {ranks} ranks": why for kind in _KINDS}
            not_measured |= {"messages": why, "overlap": why} if ranks == 2 else {}
            continue
        tick(f"communication: {ranks} ranks")
        sizes, summed = _own_sizes(deployment), _gradient_sizes(deployment, parameters)
        if sharing_asked(deployment):  # gradients are scattered then, and parameters gathered
            sizes, summed = sorted({*sizes, *summed}), []
        cpu = device.type == "cpu"
        work = partial(busy_units, deployment) if cpu and not deployment.serves else None
        served = deployment if cpu and deployment.serves and ranks == 2 else None
        found.append(exchange(ranks, device.type, sizes, summed, work, served))
    return found, not_measured


def _with_lone_cpu(row: CollectiveTime) -> CollectiveTime:
    if row.kind != "shared_all_reduce":
        return row
    return row.model_copy(update={"lone_cpu_ns": lone_cpu_ns(row.ranks, row.num_bytes)})


def _own_sizes(deployment: Deployment) -> list[int]:
    """Bytes of an activation between units in every microbatch size that is asked for, where the width is known."""
    assert deployment.batch is not None
    assert deployment.model is not None
    if deployment.shape is None:
        return []
    width = deployment.batch.sequence_length * deployment.shape.hidden_size
    element = torch.empty((), dtype=getattr(torch, deployment.model.dtype)).element_size()
    sizes = {size * width * element for _, size in asked_of(deployment)}
    if deployment.serves:
        rows = (item.rows * item.length for item in asked_items(deployment))
        sizes |= {tokens * deployment.shape.hidden_size * element for tokens in rows}
        sizes |= {8 * rows * deployment.shape.vocab_size for rows in _drawn_rows(deployment)}
    return sorted(size for size in sizes if size <= _LARGEST_BYTES)


def _drawn_rows(deployment: Deployment) -> tuple[int, ...]:
    """Rows whose logits tensor-parallel ranks gather, where tokens are drawn."""
    assert deployment.batch is not None
    drawn = deployment.load is not None and deployment.load.temperature > 0
    return (1, deployment.batch.global_batch_size) if drawn else ()


def _gradient_sizes(deployment: Deployment, parameters: int) -> list[int]:
    """Bytes of the largest bucket of gradients that replicas sum, and of half of it."""
    assert deployment.model is not None
    master_weights = deployment.optimizer.master_weights
    held = state_bytes(deployment.model.dtype, "train", master_weights=master_weights)
    largest = min(BUCKET_BYTES, parameters * held.gradient)
    return [largest // 2, largest]


def _allocator(device: torch.device) -> dict[str, str]:
    """Of this process so far: what the allocator keeps beyond what it hands out, and what the driver holds beside."""
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    return {"reserved/allocated": f"{reserved / max(1, allocated):.4f}", "context bytes": str(max(0, context))}


def calibrate_into(out: Path, file: Path, *, quiet: bool, alone: bool = False) -> None:
    """Writes calibration.json."""
    deployment = load_deployment(file)
    missing = " and ".join(name for name in ("model", "batch") if getattr(deployment, name) is None)
    if missing:
        raise UsageError(f"{deployment.name}: a calibration needs the table(s) {missing}; add them")
    device, _ = choose_device(deployment.hardware, Launch(0, 0, 1, 1))
    with nullcontext() if quiet else Progress(console=Console(stderr=True), transient=True) as shown:
        task = None if shown is None else shown.add_task("calibrating", total=None)

        def tick(words: str) -> None:
            if shown is not None and task is not None:
                shown.update(task, description=words)

        write_whole(out, calibrate(deployment, device, tick, alone=alone).to_json())


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the process that calibrates. Prints sentences, not tracebacks."""
    parser = argparse.ArgumentParser(prog="hybrid_runtime.lone.calibrate", description="Measures this machine.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args(arguments)
    return ended(lambda: calibrate_into(options.out, options.file, quiet=options.quiet, alone=options.alone))


if __name__ == "__main__":
    raise SystemExit(main())
