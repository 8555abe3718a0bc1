"""Starts one side of a run with torchrun, watches it, and explains a failure in one sentence. Never imports torch.

The ranks print into `log.txt` of the run folder; what a person sees comes from the files the ranks write.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import EnvironmentProblem, ExitCode, RunError, UsageError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.run_folder import RunFolder, read_failures
from hybrid_runtime.telemetry.status import whereabouts

_CLOSE_S = 8.0  # a torchrun that was stopped, or whose rank failed, and is not gone by then is killed with its ranks
# How ranks end that torchrun itself stopped because another one failed: by the signal, or on hearing it.
_STOPPED_CODES = (-signal.SIGTERM, 128 + signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """How several machines find each other; the default is one machine and a free port.

    Attributes:
        node_rank: 0 on the machine that the endpoint names; it judges the run. Needed with several nodes.
    """

    nodes: int = 1
    node_rank: int | None = None
    endpoint: str | None = None
    run_id: str = "hybrid-runtime"

    @property
    def is_first(self) -> bool:
        return not self.node_rank

    def arguments(self) -> list[str]:
        if self.nodes == 1 and self.endpoint is None:
            return ["--standalone"]
        # c10d numbers the machines itself and ignores --node-rank; what it takes is who opens the port.
        host = [] if self.node_rank is None else ["--rdzv-conf", f"is_host={str(self.node_rank == 0).lower()}"]
        return [
            "--nnodes", str(self.nodes), *host,
            "--rdzv-backend", "c10d", "--rdzv-endpoint", str(self.endpoint), "--rdzv-id", self.run_id,
        ]  # fmt: skip


JOB, JOB_GENERATE = "hybrid_runtime.job", "hybrid_runtime.job_generate"  # what a rank can be


def torchrun_command(
    world_size: int, job_arguments: Sequence[str], rendezvous: Rendezvous, job: str = JOB
) -> list[str]:
    """The torchrun command line of one node, whose ranks run the module `job`.

    Raises:
        UsageError: the ranks cannot be divided equally over the nodes, or several nodes lack endpoint or number.
    """
    _refuse_incomplete(rendezvous)
    share, rest = divmod(world_size, rendezvous.nodes)
    if rest or not share:
        raise UsageError(
            f"{world_size} ranks cannot be divided equally over --nodes {rendezvous.nodes}; use a number of nodes that "
            f"divides {world_size}, or change the [parallel] degrees"
        )
    return [
        sys.executable, "-m", "torch.distributed.run", *rendezvous.arguments(),
        "--nproc-per-node", str(share), "-m", job, *job_arguments,
    ]  # fmt: skip


def _refuse_incomplete(rendezvous: Rendezvous) -> None:
    nodes, node_rank, endpoint = rendezvous.nodes, rendezvous.node_rank, rendezvous.endpoint
    if nodes < 1:
        raise UsageError(f"--nodes {nodes}: a run needs at least 1 machine")
    if nodes > 1 and endpoint is None:
        raise UsageError(f"--nodes {nodes} needs --rdzv-endpoint HOST:PORT, the same on every node")
    if nodes > 1 and node_rank is None:
        raise UsageError(
            f"--nodes {nodes} needs --node-rank: 0 on the machine that --rdzv-endpoint names, then 1, 2, ..."
        )
    if node_rank is not None and not 0 <= node_rank < nodes:
        raise UsageError(f"--node-rank {node_rank}: with --nodes {nodes} it must be from 0 to {nodes - 1}")
    if endpoint is not None:
        _, _, port = endpoint.rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"--rdzv-endpoint {endpoint}: needs HOST:PORT, for example node0:29500")


class Launched:
    """One running side (on several machines: this machine's part of it)."""

    def __init__(
        self, folder: RunFolder, process: subprocess.Popen[bytes], mesh: Mesh, log: Path, grace_s: float = 0
    ) -> None:
        self.folder = folder
        self._grace_s = grace_s
        self._process = process
        self._mesh = mesh
        self._log = log
        self._failed_since_s: float | None = None

    def is_running(self) -> bool:
        return self._process.poll() is None

    def check_alive(self) -> None:
        """Raises RunError, naming rank, stage, step and action, if the side has failed."""
        code = self._process.poll()
        if code is None and self._is_stuck():
            self.stop()
            code = self._process.returncode or 1
        if code is not None and code != 0:
            raise self._explained(code)

    def stop(self) -> None:
        """Ends torchrun and every rank: now, or when they had the time to write the checkpoint they are told to."""
        if not self.is_running():
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(0 if self._is_stuck() else _CLOSE_S + self._grace_s)
        except subprocess.TimeoutExpired:
            # Every rank has a session of its own, so there is no group to kill; parents go last.
            for pid in [*descendants(self._process.pid), self._process.pid]:
                _kill(pid)
            self._process.wait()

    def _is_stuck(self) -> bool:
        """A rank has failed for a while, and torchrun (which gives ranks 30 s to end) is still there."""
        if not any(self.folder.failures.glob("rank*.json")):
            self._failed_since_s = None
            return False
        self._failed_since_s = self._failed_since_s or time.monotonic()
        return time.monotonic() - self._failed_since_s > _CLOSE_S

    def _explained(self, code: int) -> RunError:
        failures = read_failures(self.folder)
        silent = self._silent_end({failure.rank for failure in failures})
        if silent is not None:
            problem = RunError(silent)
        elif failures:
            problem = RunError(failures[0].message)
            problem.exit_code = ExitCode(failures[0].exit_code)
        else:
            problem = RunError(f"torchrun ended with exit code {code} before any rank could say why")
        problem.args = (f"{problem.args[0]} (everything printed: {self._log})",)
        return problem

    def _silent_end(self, spoke: set[int]) -> str | None:
        """What happened to a rank that ended badly and left no words of its own: killed, or ended by its own code."""
        for rank, code in _ended_ranks(self._log):
            if rank in spoke or code in _STOPPED_CODES:
                continue
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} and no word"
            return f"{whereabouts(self.folder.status, self._mesh, rank)}: {how}"
        return None


def start(
    folder: RunFolder,
    deployment: Deployment,
    rendezvous: Rendezvous,
    extra_arguments: Sequence[str] = (),
    job: str = JOB,
) -> Launched:
    """Starts torchrun for a deployment that is already written to the run folder.

    Raises:
        UsageError: the ranks do not divide over the nodes.
        EnvironmentProblem: the rendezvous port is in use.
    """
    _refuse_port_in_use(rendezvous)
    deployment_file = folder.deployment_of_node(rendezvous.node_rank)
    arguments = [str(deployment_file), "--run-folder", str(folder.path), "--launched", *extra_arguments]
    command = torchrun_command(deployment.mesh.world_size, arguments, rendezvous, job)
    log_path = folder.log_of_node(rendezvous.node_rank)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(deployment, rendezvous),
            start_new_session=True,  # Ctrl-C reaches this process only; it then stops the ranks in order
        )
    grace_s = deployment.checkpoint.grace_s if deployment.checkpoint else 0
    return Launched(folder, process, deployment.mesh, log_path, grace_s)


def _environment(deployment: Deployment, rendezvous: Rendezvous) -> dict[str, str]:
    threads = str(deployment.hardware.threads_per_rank)
    given = dict(os.environ) | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    if rendezvous.nodes == 1:
        given.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a laptop's host name often resolves to nothing
    return given


def _refuse_port_in_use(rendezvous: Rendezvous) -> None:
    """Only the node that the endpoint names would host the store; a port taken there is the user's to solve."""
    if rendezvous.endpoint is None or not rendezvous.is_first:
        return
    _, _, port = rendezvous.endpoint.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))  # as torchrun's store does: the host may be known to others by another address
        except OSError as problem:
            raise EnvironmentProblem(
                f"--rdzv-endpoint {rendezvous.endpoint}: {problem.strerror}; choose a free port of this machine, or "
                "leave the option out on one machine"
            ) from None


_ENDED = re.compile(rb"^\s*rank\s+: (\d+) .*\n\s*exitcode\s+: (-?\d+) ", re.MULTILINE)


def _ended_ranks(log: Path) -> list[tuple[int, int]]:
    """Ranks that ended badly, from torchrun's closing summary: (rank, exit code; below 0 the signal that ended it)."""
    try:
        text = log.read_bytes()
    except OSError:
        return []
    return [(int(rank), int(code)) for rank, code in _ENDED.findall(text)]


def descendants(pid: int) -> Iterator[int]:
    """Processes below one, deepest first; none where the system has no /proc, or when it has ended."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:  # the thread has just ended
            continue
        for child in children:
            yield from descendants(child)
            yield child


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
