"""Starts one side of a run with torchrun, watches it, and explains a failure in one sentence. Never imports torch.

The ranks print into `log.txt` of the run folder; what a person sees comes from the files the ranks write.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import EnvironmentProblem, ExitCode, RunError, UsageError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.run_folder import RunFolder, read_failures
from hybrid_runtime.telemetry.status import read_status

_CLOSE_S = 12.0  # a stopped torchrun that has not closed its ranks by then is killed
_ABOUT_TO_FAIL = signal.SIGTERM  # what torchrun itself sends to the remaining ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """How several machines find each other; the default is one machine and a free port."""

    nodes: int = 1
    node_rank: int | None = None
    endpoint: str | None = None
    run_id: str = "hybrid-runtime"

    def arguments(self) -> list[str]:
        if self.nodes == 1 and self.endpoint is None:
            return ["--standalone"]
        # c10d numbers the machines itself and ignores --node-rank; what it takes is who opens the port.
        host = [] if self.node_rank is None else ["--rdzv-conf", f"is_host={str(self.node_rank == 0).lower()}"]
        return [
            "--nnodes", str(self.nodes), *host,
            "--rdzv-backend", "c10d", "--rdzv-endpoint", str(self.endpoint), "--rdzv-id", self.run_id,
        ]  # fmt: skip


def torchrun_command(world_size: int, job_arguments: Sequence[str], rendezvous: Rendezvous) -> list[str]:
    """The torchrun command line of one node.

    Raises:
        UsageError: the ranks cannot be divided equally over the nodes, or several nodes have no endpoint.
    """
    if rendezvous.nodes > 1 and rendezvous.endpoint is None:
        raise UsageError(f"--nodes {rendezvous.nodes} needs --rdzv-endpoint HOST:PORT, the same on every node")
    share, rest = divmod(world_size, rendezvous.nodes)
    if rest or not share:
        raise UsageError(f"{world_size} ranks cannot be divided equally over --nodes {rendezvous.nodes}")
    return [
        sys.executable, "-m", "torch.distributed.run", *rendezvous.arguments(),
        "--nproc-per-node", str(share), "-m", "hybrid_runtime.job", *job_arguments,
    ]  # fmt: skip


class Launched:
    """One running side."""

    def __init__(self, folder: RunFolder, process: subprocess.Popen[bytes], mesh: Mesh) -> None:
        self.folder = folder
        self._process = process
        self._mesh = mesh

    def is_running(self) -> bool:
        return self._process.poll() is None

    def check_alive(self) -> None:
        """Raises RunError, naming rank, stage, step and action, if the side has failed."""
        code = self._process.poll()
        if code is not None and code != 0:
            raise self._explained(code)

    def wait(self) -> None:
        """Waits for the end; raises like `check_alive`."""
        self._process.wait()
        self.check_alive()

    def stop(self) -> None:
        """Ends torchrun and every rank, now."""
        if not self.is_running():
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _explained(self, code: int) -> RunError:
        killed = _killed_ranks(self.folder.log)
        failures = read_failures(self.folder)
        if killed:
            rank, number = killed[0]
            problem = RunError(f"{self._doing(rank)}: killed by signal {number} ({signal.Signals(number).name})")
        elif failures:
            problem = RunError(failures[0].message)
            problem.exit_code = ExitCode(failures[0].exit_code)
        else:
            problem = RunError(f"torchrun ended with exit code {code} before any rank could say why")
        problem.args = (f"{problem.args[0]} (everything printed: {self.folder.log})",)
        return problem

    def _doing(self, rank: int) -> str:
        """ "rank 3 (dp 0, pp 1, tp 1), stage 1, step 7, 1B5" from the rank's status file."""
        place = str(self._mesh.place(rank)) if rank < self._mesh.world_size else f"rank {rank}"
        status = read_status(self.folder.status / f"rank{rank}")
        if status is None:
            return place
        step = "before the first step" if status.step is None else f"step {status.step}"
        return f"{place}, stage {status.stage}, {step}, {status.action}"


def start(
    folder: RunFolder, deployment: Deployment, rendezvous: Rendezvous, extra_arguments: Sequence[str] = ()
) -> Launched:
    """Starts torchrun for a deployment that is already written to the run folder.

    Raises:
        UsageError: the ranks do not divide over the nodes.
        EnvironmentProblem: the rendezvous port is in use.
    """
    _refuse_port_in_use(rendezvous)
    arguments = [str(folder.deployment), "--run-folder", str(folder.path), "--launched", *extra_arguments]
    command = torchrun_command(deployment.mesh.world_size, arguments, rendezvous)
    log = folder.log.open("wb")
    with log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(deployment, rendezvous),
            start_new_session=True,  # Ctrl-C reaches this process only; it then stops the ranks in order
        )
    return Launched(folder, process, deployment.mesh)


def _environment(deployment: Deployment, rendezvous: Rendezvous) -> dict[str, str]:
    threads = str(deployment.hardware.threads_per_rank)
    given = dict(os.environ) | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    if rendezvous.nodes == 1:
        given.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a laptop's host name often resolves to nothing
    return given


def _refuse_port_in_use(rendezvous: Rendezvous) -> None:
    """Only the node that the endpoint names would host the store; a port taken there is the user's to solve."""
    if rendezvous.endpoint is None or rendezvous.node_rank not in (None, 0):
        return
    host, _, port = rendezvous.endpoint.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--rdzv-endpoint {rendezvous.endpoint}: needs HOST:PORT, for example node0:29500")
    if rendezvous.nodes > 1:
        return  # another node may already host it: that is no conflict
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host or "127.0.0.1", int(port)))
        except OSError as problem:
            raise EnvironmentProblem(
                f"--rdzv-endpoint {rendezvous.endpoint}: {problem.strerror}; choose another port, or leave the option "
                "out on one machine"
            ) from None


_FAILED = re.compile(rb"^\s*rank\s+: (\d+) .*\n\s*exitcode\s+: (-\d+) ", re.MULTILINE)


def _killed_ranks(log: Path) -> list[tuple[int, int]]:
    """Ranks that a signal ended, from torchrun's closing summary: (rank, signal number)."""
    try:
        text = log.read_bytes()
    except OSError:
        return []
    found = [(int(rank), -int(code)) for rank, code in _FAILED.findall(text)]
    return [(rank, number) for rank, number in found if number != _ABOUT_TO_FAIL]
