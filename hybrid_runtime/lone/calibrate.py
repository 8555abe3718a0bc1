"""Calibrates this machine for a deployment's model; `hybrid-runtime calibrate` starts it.

    python -m hybrid_runtime.lone.calibrate FILE --out calibration.json

What this machine cannot show is left out and named with the reason, never made up.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from hybrid_runtime.calibration import Calibration, CollectiveTime, model_hash
from hybrid_runtime.comm.start import Launch, choose_device
from hybrid_runtime.deployment import Deployment, load_deployment
from hybrid_runtime.errors import EnvironmentProblem, ExitCode, HybridRuntimeError, UsageError
from hybrid_runtime.fingerprint import fingerprint
from hybrid_runtime.lone.exchange import Exchanged, exchange, lone_cpu_ns
from hybrid_runtime.lone.overheads import executor_ns, optimizer_costs
from hybrid_runtime.lone.unit_times import Wanted, unit_times
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.run_folder import write_whole
from hybrid_runtime.telemetry.host import cpu_name, find_gpu, settle, versions
from hybrid_runtime.telemetry.machine import machine

Tick = Callable[[str], None]
_OWN_VOCABULARY = 256  # of a user's own units, whose vocabulary nobody knows
_KINDS = ("all_reduce", "reduce_scatter", "all_gather")


def calibrate(deployment: Deployment, device: torch.device, tick: Tick) -> Calibration:
    """Measures everything that this machine can show of the deployment's model.

    Raises:
        EnvironmentProblem: the model's units do not fit on the device.
        UsageError: the model or its batch is missing or cannot be built.
    """
    assert deployment.model is not None
    assert deployment.batch is not None
    specs = model_units(deployment.model, deployment.shape)
    costs = model_costs(deployment, specs)
    cpu = device.type == "cpu"
    host = settle(0, 1, 1, pin=False)
    found, not_measured = _exchanged(deployment, device, host.available_cores, tick)
    if cpu:
        settle(0, 1, 1)
        torch.set_num_threads(1)
    batch = deployment.batch
    wanted = Wanted(
        specs=specs,
        tp_degrees=_divisors(deployment.mesh.world_size),
        microbatch_sizes=sorted({max(1, batch.microbatch_size // 2), batch.microbatch_size, 2 * batch.microbatch_size}),
        sequence_length=batch.sequence_length,
        sequence_parallel=deployment.parallel.sequence_parallel,
        dtype=deployment.model.dtype,
        vocab_size=deployment.shape.vocab_size if deployment.shape else _OWN_VOCABULARY,
        device=device,
    )
    try:
        units, left_out = unit_times(wanted, tick)
        tick("executor: empty stages")
        action_ns, step_ns = executor_ns(device)
        tick("optimizer")
        optimizer = optimizer_costs(specs, deployment.optimizer, device, getattr(torch, wanted.dtype))
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
        units=tuple(units),
        collectives=tuple(_with_lone_cpu(row) for world in found for row in world.collectives),
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
        not_measured=not_measured | left_out,
    )


def _exchanged(
    deployment: Deployment, device: torch.device, cores: int, tick: Tick
) -> tuple[list[Exchanged], dict[str, str]]:
    """Every group that fits on this machine with a core or GPU for each rank, and the reason for every other."""
    assert deployment.batch is not None
    places, what = (cores, "cores") if device.type == "cpu" else (torch.cuda.device_count(), "GPUs")
    not_measured = {"between hosts": "calibrate measures on one host"}
    found = []
    for ranks in sorted({2, *_divisors(deployment.mesh.world_size)} - {1}):
        if ranks > places:
            why = f"{ranks} ranks, but this machine has {places} {what if places != 1 else what[:-1]}"
            not_measured |= {f"{kind} of {ranks} ranks": why for kind in _KINDS}
            not_measured |= {"messages": why, "overlap": why} if ranks == 2 else {}
            continue
        tick(f"communication: {ranks} ranks")
        found.append(exchange(ranks, device.type, _own_sizes(deployment)))
    return found, not_measured


def _with_lone_cpu(row: CollectiveTime) -> CollectiveTime:
    if row.kind != "shared_all_reduce":
        return row
    return row.model_copy(update={"lone_cpu_ns": lone_cpu_ns(row.ranks, row.num_bytes)})


def _own_sizes(deployment: Deployment) -> list[int]:
    """Bytes of an activation between units, where the model's width is known."""
    assert deployment.batch is not None
    assert deployment.model is not None
    if deployment.shape is None:
        return []
    tokens = deployment.batch.microbatch_size * deployment.batch.sequence_length
    element = torch.empty((), dtype=getattr(torch, deployment.model.dtype)).element_size()
    return [tokens * deployment.shape.hidden_size * element]


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _allocator(device: torch.device) -> dict[str, str]:
    """Of this process so far: what the allocator keeps beyond what it hands out, and what the driver holds beside."""
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    return {"reserved/allocated": f"{reserved / max(1, allocated):.4f}", "context bytes": str(max(0, context))}


def calibrate_into(out: Path, file: Path, *, quiet: bool) -> None:
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

        write_whole(out, calibrate(deployment, device, tick).to_json())


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the process that calibrates. Prints sentences, not tracebacks."""
    parser = argparse.ArgumentParser(prog="hybrid_runtime.lone.calibrate", description="Measures this machine.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args(arguments)
    try:
        calibrate_into(options.out, options.file, quiet=options.quiet)
    except HybridRuntimeError as problem:
        print(f"hybrid-runtime: {problem}", file=sys.stderr)
        return problem.exit_code
    except OSError as problem:
        print(f"hybrid-runtime: {problem}; check the disk and the folder's permissions", file=sys.stderr)
        return ExitCode.ERROR
    return ExitCode.PASS


if __name__ == "__main__":
    raise SystemExit(main())
