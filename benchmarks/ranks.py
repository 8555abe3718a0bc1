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
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch._C._distributed_c10d import FileStore

from hybrid_runtime.telemetry.host import physical_cores, settle

TIMEOUT_S = 1800


def cores() -> int:
    """Physical cores this process may use."""
    return len(physical_cores(sorted(os.sched_getaffinity(0))))


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, device: str = "cpu") -> list[Any]:
    """Runs `function(rank, *args)` on every rank, each with one thread, and returns the answers in order of ranks.

    CPU ranks are pinned to cores of their own where there are enough, exactly as `hybrid_runtime.job` does.

    Args:
        function: importable; what it returns must be JSON. torch.distributed is initialised and torn down around it.
        device: "cpu" (gloo over loopback) or "cuda" (NCCL, a GPU per rank).

    Raises:
        RuntimeError: a rank raised (its traceback is the message) or died.
    """
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ranks = [
            context.Process(target=_rank, args=(rank, world_size, folder, device, function, args), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            while any(process.is_alive() for process in ranks) and not any(process.exitcode for process in ranks):
                time.sleep(0.05)
            _raise_first_failure(folder, [process.exitcode for process in ranks])
            return [json.loads((folder / f"answer-{rank}.json").read_text()) for rank in range(world_size)]
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _raise_first_failure(folder: Path, exit_codes: list[int | None]) -> None:
    if not any(exit_codes):
        return
    time.sleep(0.1)  # a rank that failed first may still be writing
    failures = sorted(folder.glob("failed-*"))
    if failures:
        rank = failures[0].name.rpartition("-")[2]
        raise RuntimeError(f"rank {rank} failed first:\n{failures[0].read_text()}")
    raise RuntimeError(f"a rank died without a word; exit codes {exit_codes}")


def _rank(
    rank: int, world_size: int, folder: Path, device: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    settle(rank, world_size, 1, pin=device == "cpu")
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
