"""Starts the ranks that answer, hands them requests and passes on what they say. No torch here."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import RunError, Stopped
from hybrid_runtime.launcher import JOB_GENERATE, Rendezvous, start
from hybrid_runtime.plan import Plan
from hybrid_runtime.run_folder import RunFolder, write_whole
from hybrid_runtime.serving.line import Asking, Line, listen
from hybrid_runtime.serving.requests import Request
from hybrid_runtime.serving.shown import Reading
from hybrid_runtime.stop_signals import stops_held

_TICK_S = 0.1


class Ranks:
    """`with Ranks(deployment, checkpoint) as ranks`: whatever happens, no rank outlives the block.

    Their log and their status lie in a temporary folder, which stays only when a rank has failed.
    """

    def __init__(self, deployment: Deployment, checkpoint: Path | None, plan: Plan | None = None) -> None:
        self._deployment = deployment
        self._checkpoint = checkpoint
        self._plan = plan
        self._has_failed = False

    def __enter__(self) -> Ranks:
        with ExitStack() as stack:  # what was begun is ended if this does not come to its end
            path = Path(tempfile.mkdtemp(prefix="hybrid-runtime-"))
            stack.callback(self._remove_unless_failed, path)
            folder = RunFolder(path).create()
            write_whole(folder.deployment, self._deployment.canonical_json())
            self._listening = stack.enter_context(closing(listen(path / "socket")))
            with stops_held():
                self._launched = start(folder, self._deployment, Rendezvous(), self._arguments(folder), JOB_GENERATE)
                stack.callback(self._launched.stop)
            self._stack = stack.pop_all()
        return self

    def _arguments(self, folder: RunFolder) -> list[str]:
        """Of every rank; the plan is written down for them."""
        arguments = ["--socket", str(folder.path / "socket")]
        arguments += [] if self._checkpoint is None else ["--checkpoint", str(self._checkpoint)]
        if self._plan is None:
            return arguments
        write_whole(folder.plan, self._plan.to_json())
        return [*arguments, "--plan", str(folder.plan)]

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    def connected(self) -> Asking:
        """The line to rank 0, as soon as the model is there.

        Raises:
            RunError: a rank failed.
        """
        line = Line(self._accepted())
        self._stack.callback(line.close)
        return Asking(line)

    def read(self, asking: Asking, reading: Reading) -> None:
        """Until every request has ended.

        Raises:
            RunError: a rank failed.
        """
        while not reading.is_whole:
            for news in asking.news(_TICK_S):
                reading.take(news)
            if not asking.is_open and not reading.is_whole:
                self.wait()
                raise RunError("the ranks ended before every request had its answer; this is a bug of hybrid_runtime")
            self._check_alive()

    def wait(self) -> None:
        """Until the ranks have ended.

        Raises:
            RunError: a rank failed.
        """
        while self._launched.is_running():
            self._check_alive()
            time.sleep(_TICK_S)
        self._check_alive()

    def _check_alive(self) -> None:
        try:
            self._launched.check_alive()
        except RunError:
            self._has_failed = True
            raise

    def _accepted(self) -> socket.socket:
        self._listening.settimeout(_TICK_S)
        while True:
            try:
                connection, _ = self._listening.accept()
            except TimeoutError:
                self._check_alive()
                if not self._launched.is_running():
                    raise RunError("the ranks ended before they were asked; this is a bug of hybrid_runtime") from None
                continue
            connection.setblocking(True)
            return connection

    def _remove_unless_failed(self, path: Path) -> None:
        if not self._has_failed:
            shutil.rmtree(path, ignore_errors=True)


def ask(
    deployment: Deployment,
    checkpoint: Path | None,
    requests: Sequence[Request],
    made: Callable[[Asking], Reading],
    ready: Callable[[], None],
    plan: Plan | None = None,
) -> Reading:
    """Every request's answer, shown while it is made.

    Args:
        checkpoint: whose weights the model gets; None for the deployment's.
        made: what reads the answers, given the line on which to cancel.
        ready: called when the model is there.
        plan: what the ranks follow, for which `deployment` was resolved; None lets them plan.

    Raises:
        RunError: a rank failed; names rank and stage.
        Stopped: the command was told to stop; says how many answers are whole.
    """
    with Ranks(deployment, checkpoint, plan) as ranks:
        asking = ranks.connected()
        ready()
        reading = made(asking)
        try:
            asking.ask(requests)
            ranks.read(asking, reading)
            ranks.wait()
        except Stopped as stopped:
            raise Stopped(f"{stopped}; {reading.how_far}") from None
    return reading
