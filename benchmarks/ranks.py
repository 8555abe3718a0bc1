"""Starts the ranks of a benchmark (spawned, file rendezvous) and brings their answers back."""

from __future__ import annotations

import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch._C._distributed_c10d import FileStore

from hybrid_runtime.telemetry.host import physical_cores, settle

TIMEOUT_S = 1800


def cores() -> int:
    """Physical cores this process may use."""
    return len(physical_cores(sorted(os.sched_getaffinity(0))))


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, device: str = "cpu", copies: int = 1
) -> list[list[Any]]:
    """Runs `function(rank, *args)` on every rank of `copies` independent worlds at once, each rank with one thread.

    Args:
        function: importable; what it returns must be JSON. torch.distributed is initialised and torn down around it.
        device: "cpu" (gloo over loopback) or "cuda" (NCCL, a GPU per rank).

    Returns:
        Per world, the answers of its ranks in order.

    Raises:
        RuntimeError: a rank raised (its traceback is the message) or died.
    """
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        worlds = [Path(folder, str(copy)) for copy in range(copies)]
        for world in worlds:
            world.mkdir()
        ranks = [
            context.Process(
                target=_rank, args=(rank, world_size, _Place(copy, copies), world, device, function, args), daemon=True
            )
            for copy, world in enumerate(worlds)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            while any(process.is_alive() for process in ranks) and not any(process.exitcode for process in ranks):
                time.sleep(0.05)
            time.sleep(0.1 if any(process.exitcode for process in ranks) else 0)
            _raise_first_failure(worlds)
            dead = [process.exitcode for process in ranks if process.exitcode]
            if dead:
                raise RuntimeError(f"a rank died without a word, exit code {dead[0]}")
            return [
                [json.loads((world / f"answer-{rank}.json").read_text()) for rank in range(world_size)]
                for world in worlds
            ]
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _raise_first_failure(worlds: list[Path]) -> None:
    failures = sorted(file for world in worlds for file in world.glob("failed-*"))
    if failures:
        rank = failures[0].name.rpartition("-")[2]
        raise RuntimeError(f"rank {rank} failed first:\n{failures[0].read_text()}")


class _Place(NamedTuple):
    copy: int
    copies: int


def _rank(
    rank: int,
    world_size: int,
    place: _Place,
    folder: Path,
    device: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    settle(
        place.copy * world_size + rank,
        place.copies * world_size,
        1,
        pin=device == "cpu",
    )
    torch.set_num_threads(1)
    try:
        if device == "cuda":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=FileStore(str(folder / "store"), world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=TIMEOUT_S),
            device_id=torch.device("cuda", rank) if device == "cuda" else None,
        )
        answer = function(rank, *args)
        (folder / f"answer-{rank}.json").write_text(json.dumps(answer))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"failed-{time.monotonic_ns():020d}-{rank}").write_text(traceback.format_exc())
        raise SystemExit(1) from None
