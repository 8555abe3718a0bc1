"""What checkpoints cost: the same training with one every 20 steps and without any, in alternating rounds of 20 steps.

    scripts/bench checkpoints [--quick] [--save] [--device cpu|cuda] [--only NAME]

A round has 20 steps; the checkpoint is begun after its first one and written beside the others. A thread of the rank
writes it, on the rank's cores: a CPU rank with a core of its own loses what it takes, and the table says so. A machine
on which rounds vary by some per cent cannot tell three of one, so the cost is also

    accounted for   the time for which steps were held up by a checkpoint, and the CPU time of the threads that write
                    it, of all ranks together, as if no two of them ever lost the same moment: its share of a round

Goal: that share <= 3 %, its whole interval, and no measured ratio that contradicts it (with / without <= 1.03 a FAIL).
What the disk and the memory take from others is in the ratio alone. What a checkpoint costs grows with the parameters,
what a step costs with parameters x tokens: the model has half the benchmarks' width, a step their 2,048 tokens
(--tokens: another number).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from time import monotonic_ns
from typing import Any, NamedTuple

import torch

from benchmarks.blocks import Step, Timing, measure_sides
from benchmarks.cases import Case
from benchmarks.on_and_off import OFF, ON, Column, account_text, bench, judged_by_account
from benchmarks.options import parser_of, sizes_and_timing
from benchmarks.ours import plan_of
from hybrid_runtime.checkpoint.same_training import Training
from hybrid_runtime.checkpoint.saver import WRITER
from hybrid_runtime.comm.groups import Backend
from hybrid_runtime.data.mixture import mixture_of
from hybrid_runtime.data.opening import contents_of, open_source
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_checkpoint import Checkpoint
from hybrid_runtime.job import run_step
from hybrid_runtime.job_checkpoints import open_checkpoints
from hybrid_runtime.job_last_words import LastWords
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import assemble, build, join_mesh
from hybrid_runtime.models.build import model_units
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.verifier.decide_ratio import MIN_BLOCK_PAIRS

GOAL = 1.03
EVERY = 20
CASES = (Case("1x1", 1, 1, goal=GOAL), Case("pp2", 1, 2, goal=GOAL))


class Accounted(NamedTuple):
    """One round of one rank: nanoseconds of it, for which steps were held up in it, and of the writing threads' CPU."""

    round_ns: int
    held_ns: int
    thread_ns: int


def main(arguments: Sequence[str] | None = None) -> int:
    """As `on_and_off.bench`."""
    parser = parser_of("checkpoints", __doc__, blocks=MIN_BLOCK_PAIRS)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step; a multiple of 256")
    options = parser.parse_args(arguments)
    sizes, timing = sizes_and_timing(options)
    if not options.quick:
        sequences = options.tokens // sizes.sequence_length
        sizes = replace(sizes, hidden_size=256, ffn_size=704, num_heads=4, global_batch_size=sequences)
    timing = Timing(warmup_steps=1, blocks=timing.blocks, settle_steps=0, block_steps=1)
    columns = {"checkpoint MB": _megabytes, "ranks' cores": _cores("rank_cores"), "written on": _cores("writer_cores")}
    columns["accounted for"] = account_text
    return bench("checkpoints", options, sizes, timing, CASES, measure_rank, steps=EVERY, columns=columns, judge=judge)


def judge(case: Case, ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As `on_and_off.judged_by_account`; of the measured rounds, the first is not one."""
    rounds = list(zip(*([Accounted(*row) for row in rank["accounted"]] for rank in ranks), strict=True))[1:]
    costs = [
        Fraction(sum(rank.held_ns + rank.thread_ns for rank in row), max(rank.round_ns for rank in row))
        for row in rounds
    ]
    return judged_by_account(case, ranks, costs)


def _megabytes(case: Mapping[str, Any]) -> str:
    return f"{sum(case['checkpoint_bytes']) / 1e6:.1f}"


def _cores(key: str) -> Column:
    """Of every rank, the cores that something of it may use."""
    return lambda case: "; ".join(",".join(map(str, cores)) or "?" for cores in case[key])


def measure_rank(rank: int, deployment: Deployment, folder: Path, timing: Timing, device_type: str) -> dict[str, Any]:
    """One rank, twice: with checkpoints and without. Beside that, the cores of the rank and of its writer."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    where = folder / f"checkpoints-{deployment.name}"
    with_them = deployment.model_copy(update={"checkpoint": Checkpoint(folder=str(where), every=EVERY, keep=1)})
    where.mkdir(exist_ok=True)
    writers = set[int]()
    accounts: dict[str, list[Accounted]] = {ON: [], OFF: []}
    sides = {
        name: rounds_of(side, device, writers, accounts[name]) for name, side in ((ON, with_them), (OFF, deployment))
    }
    answer = measure_sides(sides, timing, device_type)
    files = where.glob(f"step-*/rank{rank}.safetensors")
    return answer | {
        "checkpoint_bytes": max((file.stat().st_size for file in files), default=0),
        "rank_cores": sorted(os.sched_getaffinity(0)),
        "writer_cores": sorted(writers),
        "accounted": accounts[ON],
    }


def rounds_of(deployment: Deployment, device: torch.device, writers: set[int], accounts: list[Accounted]) -> Step:
    """20 more steps at every call, with a checkpoint begun after the first, where the deployment has any.

    Args:
        writers: gets the cores on which a thread that writes one may run.
        accounts: gets one more with every call.
    """
    specs, plan = model_units(deployment.model, deployment.shape), plan_of(deployment)
    backend: Backend = "nccl" if device.type == "cuda" else "gloo"
    groups = join_mesh(plan, specs, device=device, backend=backend, timeout=timedelta(minutes=5))
    built, source = build(deployment, plan, specs, groups), open_source(deployment.data)
    training = Training(deployment, plan, specs, groups, contents_of(mixture_of(source)))
    checkpoints = open_checkpoints(training, built, None, LastWords(), writing=True)
    parts = assemble(deployment, plan, groups, built, source, NullRecorder(device), checkpoints)
    trained = 0

    def run() -> float | None:
        nonlocal trained
        loss, held_ns = None, 0
        begin_ns, thread_ns = monotonic_ns(), checkpoints.thread_ns
        # The first round, which is not measured, is a step short: in all others the checkpoint falls on the first step.
        for _ in range(EVERY if trained else EVERY - 1):
            loss, numbers = run_step(parts, Order(trained, trained))
            trained += 1
            stepped_ns = monotonic_ns()
            checkpoints.after_step(trained, numbers)
            held_ns += monotonic_ns() - stepped_ns
            writers.update(*map(_cores_of, threading.enumerate()))
        accounts.append(Accounted(monotonic_ns() - begin_ns, held_ns, checkpoints.thread_ns - thread_ns))
        return loss

    return run


def _cores_of(thread: threading.Thread) -> set[int]:
    """Where a thread that writes a checkpoint may run; nowhere for another, or one that has just ended."""
    if thread.native_id is None or thread.name != WRITER:
        return set()
    with contextlib.suppress(ProcessLookupError):
        return os.sched_getaffinity(thread.native_id)
    return set()


if __name__ == "__main__":
    raise SystemExit(main())
