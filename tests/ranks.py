"""How this project's tests start several processes: forked, gloo, file rendezvous, time-out, first failure shown.

Importing torch and this package costs a process two to four seconds of a core, so one process does that alone (a fork
server) and ranks are forked from it. It runs nothing and has one thread, which every rank checks: what is forked beside
threads may wait for ever on a lock that one of them held.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

import torch
import torch.distributed as dist

os.environ["OMP_NUM_THREADS"] = "1"  # for the fork server: without it, importing numpy starts threads
# The last: what torch's own optimizers import, with which updates are compared.
_PRELOADED = ["pytest", "hybrid_runtime.job", "torch._dynamo"]


def forking() -> ForkServerContext:
    """Starts processes that have imported torch and this package; their environment is the fork server's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def run_ranks(world_size: int, function: Callable[..., None], *args: Any, timeout_s: float = 120) -> None:
    """Runs `function(rank, *args)` on `world_size` gloo ranks, each with one thread.

    `function` must be importable (module level) and may use torch.distributed, which is initialised and torn down here.

    Args:
        timeout_s: for all of it. What ranks wait for each other is limited ten times as high: whoever was stopped
            meanwhile, with all others, must not find that time is over.

    Raises:
        AssertionError: a rank raised (its traceback, the first in time, is the message), died, or all ran too long.
    """
    context, environment = forking(), dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(
                target=_rank, args=(rank, world_size, environment, folder, timeout_s, function, args), daemon=True
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            problem = _wait(ranks, folder, timeout_s)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        if problem is not None:
            raise AssertionError(f"of {world_size} ranks, {problem}")


def _rank(
    rank: int,
    world_size: int,
    environment: Mapping[str, str],
    folder: str,
    timeout_s: float,
    function: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    try:
        threads = len(os.listdir(f"/proc/{os.getppid()}/task"))
        assert threads == 1, f"the fork server has {threads} threads: importing {_PRELOADED} must start none"
        store = dist.FileStore(f"{folder}/store", world_size)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=10 * timeout_s)
        )
        function(rank, *args)
        dist.destroy_process_group()
    except BaseException:
        with open(f"{folder}/failed-{time.monotonic_ns():020d}-{rank}", "w") as file:
            file.write(traceback.format_exc())
        raise SystemExit(1) from None


def _wait(ranks: list[ForkServerProcess], folder: str, left_s: float) -> str | None:
    """Why the ranks did not end well. Time in which this process itself was stopped does not count."""
    seen_s = time.monotonic()
    while any(process.is_alive() for process in ranks):
        if any(process.exitcode not in (None, 0) for process in ranks):
            break
        left_s -= min(1.0, time.monotonic() - seen_s)
        seen_s = time.monotonic()
        if left_s < 0:
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
