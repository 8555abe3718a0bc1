"""Jobs that are started to be killed: by torchrun, or forked from a process that has read this package already."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hybrid_runtime.launcher import descendants

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
PRELOADED = ["benchmarks.started_jobs", "hybrid_runtime.job", "hybrid_runtime.checkpoint.reader"]


class Job(Protocol):
    """A started job."""

    def pids(self) -> list[int]:
        """Of all its processes."""

    def runs(self) -> bool:
        """Whether none of them has ended."""

    def wait(self) -> None:
        """Until it has ended."""


class Torchrun:
    """torchrun and its ranks."""

    def __init__(self, arguments: Sequence[str], ranks: int, log: Path) -> None:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
            "-m", "hybrid_runtime.job", *arguments,
        ]  # fmt: skip
        with log.open("w") as file:
            self._process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=file, stderr=file)

    def pids(self) -> list[int]:
        return [self._process.pid, *descendants(self._process.pid)]

    def runs(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> None:
        self._process.wait()


class Forked:
    """Ranks without torchrun."""

    def __init__(self, arguments: Sequence[str], ranks: int, log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._ranks = [context.Process(target=_rank, args=(rank, ranks, port, arguments, log)) for rank in range(ranks)]
        for process in self._ranks:
            process.start()

    def pids(self) -> list[int]:
        return [process.pid for process in self._ranks if process.pid is not None]

    def runs(self) -> bool:
        return all(process.is_alive() for process in self._ranks)

    def wait(self) -> None:
        for process in self._ranks:
            process.join()


def _rank(rank: int, ranks: int, port: int, arguments: Sequence[str], log: Path) -> None:
    from hybrid_runtime.job import main as job

    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(ENVIRONMENT, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for kind in ("", "LOCAL_"):
        os.environ.update({f"{kind}RANK": str(rank), f"{kind}WORLD_SIZE": str(ranks)})
    os._exit(job(arguments))


def kill(pids: Sequence[int]) -> None:
    """SIGKILL to all of them at once; returns when they are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in pids):
        time.sleep(0.001)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
