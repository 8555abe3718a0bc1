"""The hang detector of one rank: a thread that gives a sign of life, and looks at all ranks when its own is stuck.

    every beat            status/rank<R> gets the time
    nothing for a limit   the files of all ranks are read; if none of them has come further, that is a hang:
                          the first to find it says who holds up whom, writes hang.txt, and every rank leaves

Status files are the only channel: they need neither the stuck rank's help nor the network between the ranks, and the
machines of a run share the run folder anyway. A rank that was stopped by a signal cannot leave: another of its machine
kills it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import TracebackType

from hybrid_runtime.errors import ExitCode
from hybrid_runtime.faults.hang import Hang, account_text, find_hang
from hybrid_runtime.faults.waits import Scene
from hybrid_runtime.plan import Plan
from hybrid_runtime.run_folder import Failure, RunFolder, read_failures, write_failure
from hybrid_runtime.telemetry.account import process_state, read_account
from hybrid_runtime.telemetry.status import StatusFile

THREAD_NAME = "hang detector"
_HEARD_S = 5.0  # within which the rank that found the hang has told of it


class Watch:
    """`with Watch(...)`: from here on this rank is watched, until the block ends.

    Args:
        status: of this rank.
        clock_offset_ns: what is added to this host's clock to compare it with other hosts'.
        limit_s: 0 watches nothing.
    """

    def __init__(
        self, folder: RunFolder, plan: Plan, rank: int, status: StatusFile, clock_offset_ns: int, limit_s: float
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._rank = rank
        self._status = status
        self._clock_offset_ns = clock_offset_ns
        self._limit_s = limit_s
        self._period_s = min(1.0, max(0.1, limit_s / 20))
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if self._limit_s:
            self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._period_s):
            self._status.beat()
            idle_s = self._status.idle_s
            if idle_s > self._limit_s / 2:
                self._status.flush()  # whoever looks from another machine must not see an old state
            if idle_s > self._limit_s:
                scene = self._look()
                hang = find_hang(scene, self._limit_s)
                if hang is not None and not self._over.is_set():
                    self._end(hang, scene)

    def _look(self) -> Scene:
        files = {rank: self._folder.status / f"rank{rank}" for rank in range(self._plan.mesh.world_size)}
        found = {rank: read_account(file) for rank, file in files.items()}
        known = {rank: account for rank, account in found.items() if account is not None}
        return Scene(known, self._plan, time.monotonic_ns() + self._clock_offset_ns)

    def _end(self, hang: Hang, scene: Scene) -> None:
        """Says why, unless another rank does; then nothing of this machine is left of the run."""
        try:
            if self._is_first():
                print(f"hybrid_runtime: {self._words(hang)}", file=sys.stderr, flush=True)
                self._write_down(hang, scene)
            else:
                self._wait_until_told(hang)
            if self._rank not in hang.culprits:
                words = f"{scene.plan.mesh.place(self._rank)}, {scene.accounts[self._rank].status}: left, for a hang"
                self._fail(self._rank, words, follows=True)
        finally:  # a full disk must not keep it here
            self._kill_lifeless(hang, scene)
            os._exit(ExitCode.ERROR)

    def _is_first(self) -> bool:
        try:
            os.close(os.open(self._folder.hang, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        except OSError:  # where nothing can be written, every rank tells
            return True
        return True

    def _words(self, hang: Hang) -> str:
        return f"{hang.sentence} (the last actions of all ranks: {self._folder.hang})"

    def _write_down(self, hang: Hang, scene: Scene) -> None:
        texts = [account_text(rank, scene) for rank in sorted(scene.accounts)]
        self._folder.hang.write_text("\n".join([f"{hang.sentence}\n", *texts]), encoding="utf-8")
        for rank in reversed(hang.culprits):
            self._fail(rank, self._words(hang), follows=rank != hang.culprits[0])

    def _fail(self, rank: int, words: str, *, follows: bool) -> None:
        failure = Failure(rank, words, int(ExitCode.ERROR), time.monotonic_ns(), lost_peer=follows)
        write_failure(self._folder, failure, f"{words}\n")

    def _wait_until_told(self, hang: Hang) -> None:
        deadline_s = time.monotonic() + _HEARD_S
        told = set[int]()
        while hang.culprits[0] not in told and time.monotonic() < deadline_s:
            time.sleep(0.05)
            told = {failure.rank for failure in read_failures(self._folder)}

    def _kill_lifeless(self, hang: Hang, scene: Scene) -> None:
        for account in (scene.accounts[rank] for rank in hang.culprits if hang.lifeless):
            if process_state(account):  # it is here, and no other process has its number
                with contextlib.suppress(ProcessLookupError):
                    os.kill(account.pid, signal.SIGKILL)
