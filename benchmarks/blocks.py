"""Sides measured in alternating blocks in the same processes, A B B A, so that a drift hits all alike.

    side A   | s m m m |                     | s m m m |        s  settles: caches are cold after a change of sides
    side B             | s m m m | s m m m |                    m  measured

A step's time is that of its slowest rank; its CPU time is the sum over all ranks and all their threads. `busy` is the
CPU time of the ranks' own threads, which wait without using any, over ranks x step: on CPU ranks one clock for both
sides, but one that counts a side's overhead as work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

Step = Callable[[], float | None]  # one whole training step; returns the loss on ranks that know it


class Timing(NamedTuple):
    """How long to measure: unmeasured steps first, then blocks of each side."""

    warmup_steps: int = 3
    blocks: int = 4
    settle_steps: int = 1
    block_steps: int = 3


class Ratio(NamedTuple):
    """A ratio over the pairs of neighbouring blocks."""

    minimum: float
    median: float
    maximum: float


def measure_sides(sides: dict[str, Step], timing: Timing, device: str) -> dict[str, Any]:
    """Runs on every rank. Returns what `combine` needs: losses of the warm-up; per side and block, nanoseconds."""
    losses = {name: [step() for _ in range(timing.warmup_steps)] for name, step in sides.items()}
    blocks: dict[str, list[list[tuple[int, int, int]]]] = {name: [] for name in sides}
    for number in range(timing.blocks):
        for name in sides if number % 2 == 0 else reversed(sides):
            for _ in range(timing.settle_steps):
                sides[name]()
            blocks[name].append([_timed(sides[name], device) for _ in range(timing.block_steps)])
    return {"losses": losses, "blocks": blocks}


def _timed(step: Step, device: str) -> tuple[int, int, int]:
    """(wall, CPU, the thread's own CPU) nanoseconds of one step on this rank.

    The closing barrier lets helper threads finish their work, which the second figure counts.
    """
    dist.barrier()
    cpu_start, thread_start, start = time.process_time_ns(), time.thread_time_ns(), time.monotonic_ns()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    wall, thread = time.monotonic_ns() - start, time.thread_time_ns() - thread_start
    dist.barrier()
    return wall, time.process_time_ns() - cpu_start, thread


def combine(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All ranks' answers of two sides -> figures per side, and the ratios first side / second side."""
    first, second = ranks[0]["blocks"]
    wall_s = {name: step_times_s(ranks, name) for name in (first, second)}
    cpu_s = {name: _per_block([rank["blocks"][name] for rank in ranks], 1, sum) for name in (first, second)}
    own_s = {name: _per_block([rank["blocks"][name] for rank in ranks], 2, sum) for name in (first, second)}
    return {
        "sides": {
            name: {
                "step_time_s": statistics.median(wall_s[name]),
                "step_time_s_of_blocks": wall_s[name],
                "cpu_s": statistics.median(cpu_s[name]),
                "cpu_s_of_blocks": cpu_s[name],
                "busy": statistics.median(own / (len(ranks) * wall) for own, wall in zip(own_s[name], wall_s[name])),
                "losses": next(loss for rank in ranks if None not in (loss := rank["losses"][name])),
            }
            for name in (first, second)
        },
        "step_time_ratio": ratio(wall_s[first], wall_s[second])._asdict(),
        "cpu_ratio": ratio(cpu_s[first], cpu_s[second])._asdict(),
    }


def step_times_s(ranks: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Of one side, by block: the median of its steps, each that of its slowest rank, in seconds."""
    return _per_block([rank["blocks"][name] for rank in ranks], 0, max)


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """First / second over pairs of blocks."""
    pairs = [a / b for a, b in zip(first, second, strict=True)]
    return Ratio(min(pairs), statistics.median(pairs), max(pairs))


def _per_block(
    ranks: Sequence[Sequence[Sequence[Sequence[int]]]], which: int, over_ranks: Callable[[Sequence[int]], int]
) -> list[float]:
    """Median over a block's steps, in seconds, of one figure combined over the ranks."""
    blocks = []
    for block in zip(*ranks, strict=True):
        steps = [over_ranks([figures[which] for figures in step]) for step in zip(*block, strict=True)]
        blocks.append(statistics.median(steps) / 1e9)
    return blocks
