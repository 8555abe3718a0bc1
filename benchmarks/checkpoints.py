"""What checkpoints cost: the same training with one every 20 steps and without any, in alternating rounds of 20 steps.

    scripts/bench checkpoints [--quick] [--save] [--device cpu|cuda] [--only NAME]

A round has 20 steps; the checkpoint is begun after its first one and written beside the others. Goal: the time of a
round with / without <= 1.03. What a checkpoint costs grows with the parameters, what a step costs with parameters x
tokens: the model has half the benchmarks' width, a step their 2,048 tokens (--tokens gives another number).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.blocks import Step, Timing, combine, measure_sides
from benchmarks.cases import Case, make_deployment, prepare
from benchmarks.options import cases_here, parser_of, sizes_and_timing
from benchmarks.ours import plan_of
from benchmarks.ranks import run_ranks
from benchmarks.results import arguments_given, environment, markdown_table, save
from hybrid_runtime.checkpoint.same_training import Training
from hybrid_runtime.comm.groups import Backend
from hybrid_runtime.data.opening import open_source
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_checkpoint import Checkpoint
from hybrid_runtime.job import run_step
from hybrid_runtime.job_checkpoints import open_checkpoints
from hybrid_runtime.job_last_words import LastWords
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import assemble, build, join_mesh
from hybrid_runtime.models.build import model_units
from hybrid_runtime.telemetry.recorder import NullRecorder

GOAL = 1.03
EVERY = 20
CASES = (Case("1x1", 1, 1, goal=GOAL), Case("pp2", 1, 2, goal=GOAL))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, prints the table, and with --save keeps the result. Returns 1 when the goal is missed."""
    parser = parser_of("checkpoints", __doc__, blocks=4)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step; a multiple of 256")
    options = parser.parse_args(arguments)
    sizes, timing = sizes_and_timing(options)
    if not options.quick:
        sequences = options.tokens // sizes.sequence_length
        sizes = replace(sizes, hidden_size=256, ffn_size=704, num_heads=4, global_batch_size=sequences)
    timing = Timing(warmup_steps=1, blocks=timing.blocks, settle_steps=0, block_steps=1)
    result: dict[str, Any] = {"environment": environment(arguments_given(), "checkpoints"), "cases": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, sizes)
        for case in cases_here(options, CASES):
            deployment = make_deployment(case, sizes, folder, options.device)
            ranks = run_ranks(
                case.world_size, measure_rank, deployment, folder, timing, options.device, device=options.device
            )
            figures = combine(ranks)
            met = figures["step_time_ratio"]["median"] <= GOAL
            num_bytes = sum(rank["checkpoint_bytes"] for rank in ranks)
            result["cases"][case.name] = figures | {
                "metric": "step_time_ratio",
                "goal": GOAL,
                "met": met,
                "checkpoint_bytes": num_bytes,
            }
            print(f"{case.name}: done", flush=True)
    table = table_of(result)
    print(table)
    if options.save:
        print(f"saved {save('checkpoints', result, table, options.results).name}")
    return 0 if all(case["met"] for case in result["cases"].values()) else 1


def measure_rank(rank: int, deployment: Deployment, folder: Path, timing: Timing, device_type: str) -> dict[str, Any]:
    """One rank, twice: with checkpoints and without."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    where = folder / f"checkpoints-{deployment.name}"
    with_them = deployment.model_copy(update={"checkpoint": Checkpoint(folder=str(where), every=EVERY, keep=1)})
    where.mkdir(exist_ok=True)
    sides = {name: rounds_of(side, device) for name, side in (("on", with_them), ("off", deployment))}
    answer = measure_sides(sides, timing, device_type)
    files = where.glob(f"step-*/rank{rank}.safetensors")
    return answer | {"checkpoint_bytes": max((file.stat().st_size for file in files), default=0)}


def rounds_of(deployment: Deployment, device: torch.device) -> Step:
    """20 more steps at every call, with a checkpoint begun after the first, where the deployment has any."""
    specs, plan = model_units(deployment.model, deployment.shape), plan_of(deployment)
    backend: Backend = "nccl" if device.type == "cuda" else "gloo"
    groups = join_mesh(plan, specs, device=device, backend=backend, timeout=timedelta(minutes=5))
    built, source = build(deployment, plan, specs, groups), open_source(deployment.data)
    training = Training(deployment, plan, specs, groups, len(source))
    checkpoints = open_checkpoints(training, built, None, LastWords(), writing=True)
    parts = assemble(deployment, plan, groups, built, source, NullRecorder(device), checkpoints)
    trained = 0

    def run() -> float | None:
        nonlocal trained
        loss = None
        # The first round, which is not measured, is a step short: in all others the checkpoint falls on the first step.
        for _ in range(EVERY if trained else EVERY - 1):
            loss, numbers = run_step(parts, Order(trained, trained))
            trained += 1
            checkpoints.after_step(trained, numbers)
        return loss

    return run


def table_of(result: dict[str, Any]) -> str:
    """One row per case."""
    rows = []
    for name, case in result["cases"].items():
        on, off, ratio = case["sides"]["on"], case["sides"]["off"], case["step_time_ratio"]
        rows.append(
            [
                name,
                f"{case['checkpoint_bytes'] / 1e6:.1f}",
                f"{on['step_time_s'] / EVERY:.4f}",
                f"{off['step_time_s'] / EVERY:.4f}",
                f"{ratio['median']:.4f} ({ratio['minimum']:.4f}-{ratio['maximum']:.4f})",
                f"<= {case['goal']}: {'met' if case['met'] else 'missed'}",
            ]
        )
    return markdown_table(["case", "checkpoint MB", "step with s", "step without s", "with / without", "goal"], rows)


if __name__ == "__main__":
    raise SystemExit(main())
