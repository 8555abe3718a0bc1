"""How this project's tests start several processes: spawn, gloo, file rendezvous, time-out, first failure shown."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(world_size: int, function: Callable[..., None], *args: Any, timeout_s: float = 120) -> None:
    """Runs `function(rank, *args)` on `world_size` gloo ranks, each with one thread.

    `function` must be importable (module level) and may use torch.distributed, which is initialised and torn down here.

    Raises:
        AssertionError: a rank raised (its traceback, the first in time, is the message), died, or all ran too long.
    """
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, world_size, folder, timeout_s, function, args), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            problem = _wait(ranks, folder, time.monotonic() + timeout_s)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        if problem is not None:
            raise AssertionError(f"of {world_size} ranks, {problem}")


def _rank(
    rank: int, world_size: int, folder: str, timeout_s: float, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(f"{folder}/store", world_size)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
        )
        function(rank, *args)
        dist.destroy_process_group()
    except BaseException:
        with open(f"{folder}/failed-{time.monotonic_ns():020d}-{rank}", "w") as file:
            file.write(traceback.format_exc())
        raise SystemExit(1) from None


def _wait(ranks: list[SpawnProcess], folder: str, deadline: float) -> str | None:
    while any(process.is_alive() for process in ranks):
        if any(process.exitcode not in (None, 0) for process in ranks):
            break
        if time.monotonic() > deadline:
            alive = [rank for rank, process in enumerate(ranks) if process.is_alive()]
            return f"ranks {alive} were still running at the time-out"
        time.sleep(0.02)
    time.sleep(0.05)  # a rank that fails first may still be writing
    failures = sorted(name for name in os.listdir(folder) if name.startswith("failed-"))
    if failures:
        with open(f"{folder}/{failures[0]}") as file:
            return f"rank {failures[0].rpartition('-')[2]} failed first:\n{file.read()}"
    dead = {rank: process.exitcode for rank, process in enumerate(ranks) if process.exitcode not in (None, 0)}
    return f"these died without a word (rank: exit code): {dead}" if dead else None
