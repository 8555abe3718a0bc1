"""The hang detector of one rank: a thread that gives a sign of life, and looks at all ranks when its own is stuck.

    every beat            status/rank<R> gets the time
    nothing for a limit   the files of all ranks are read; if none of them has come further, that is a hang:
                          the first to find it says who holds up whom, writes hang.txt, and every rank leaves

Status files are the channel: they need neither the stuck rank's help nor the network between ranks, and the machines
of a run share the run folder anyway. A rank that was stopped by a signal cannot leave: another of its machine kills it.

A machine that is cut off may have lost the folder, too. So a second thread touches no file: it tries to reach where the
ranks met, and when its rank has waited for others for the limit, and the first thread has not come back from the folder
for half of it, it says so and leaves alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from hybrid_runtime.errors import ExitCode
from hybrid_runtime.faults.alone import alone_words, waits_alone
from hybrid_runtime.faults.hang import Hang, account_text, find_hang, lifeless_after_s
from hybrid_runtime.faults.meeting_point import MeetingPoint
from hybrid_runtime.faults.stuck_torchrun import end_if_stuck
from hybrid_runtime.faults.waits import Scene
from hybrid_runtime.plan import Plan
from hybrid_runtime.run_folder import Failure, RunFolder, read_failures, write_failure
from hybrid_runtime.telemetry.account import Account, parse_account, process_state, read_account
from hybrid_runtime.telemetry.status import StatusFile

THREAD_NAME = "hang detector"
_HEARD_S = 5.0  # within which the rank that found the hang has told of it
_LEAVES_S = 2.0  # for a thread that may be held by a lost disk


class Watch:
    """`with Watch(...)`: from here on this rank is watched, until the block ends.

    Args:
        status: of this rank.
        clock_offset_ns: what is added to this host's clock to compare it with other hosts'.
        limit_s: 0 watches nothing.
        meeting: where the ranks met; None on one machine.
    """

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        rank: int,
        status: StatusFile,
        clock_offset_ns: int,
        limit_s: float,
        meeting: MeetingPoint | None = None,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._rank = rank
        self._files = [folder.status / f"rank{each}" for each in range(plan.mesh.world_size)]
        self._status = status
        self._clock_offset_ns = clock_offset_ns
        self._limit_s = limit_s
        self._meeting = meeting
        self._reaches: bool | None = None
        self._period_s = min(1.0, max(0.1, limit_s / 20))
        self._over = threading.Event()
        self._answered_s = time.monotonic()
        self._threads = [
            threading.Thread(target=function, name=name, daemon=True)
            for name, function in ((THREAD_NAME, self._run), (f"{THREAD_NAME}, alone", self._run_alone))
        ]

    def __enter__(self) -> Watch:
        for thread in self._threads if self._limit_s else ():
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads if self._limit_s else ():
            thread.join(_LEAVES_S)

    def _run(self) -> None:
        while not self._over.wait(self._period_s):
            try:
                self._status.beat()
                idle_s = self._status.idle_s
                if idle_s > self._limit_s / 2:
                    self._tell_others()
                if idle_s > self._limit_s:
                    scene = self._look()
                    hang = find_hang(scene, self._limit_s)
                    if hang is not None and not self._over.is_set():
                        self._end(hang, scene)
            except OSError:  # the folder is lost, and the other thread will find that it does not answer
                continue
            self._answered_s = time.monotonic()

    def _tell_others(self) -> None:
        """Whoever looks from another machine must not see an old state.

        Raises:
            OSError: the folder is lost.
        """
        if self._reaches is not None:
            self._status.reaches(self._reaches)
        self._status.flush()
        self._files[self._rank].stat()  # what is open can be written to although the others no longer find it

    def _look(self) -> Scene:
        """Every rank's account; while the first step has not begun, of those that are set up.

        Raises:
            OSError: files are gone.
        """
        found = {rank: read_account(file) for rank, file in enumerate(self._files)}
        known = {rank: account for rank, account in found.items() if account is not None}
        if self._rank not in known or (len(known) < len(found) and known[self._rank].status.step is not None):
            raise FileNotFoundError(f"{self._folder.status}: not every rank's file is there any more")
        return Scene(known, self._plan, self._now_ns(), lifeless_after_s(self._limit_s))

    def _now_ns(self) -> int:
        return time.monotonic_ns() + self._clock_offset_ns

    def _run_alone(self) -> None:
        while not self._over.wait(self._period_s):
            idle_s = self._status.idle_s
            if self._meeting is not None:
                asked = idle_s > self._limit_s / 2
                self._reaches = self._meeting.answers(min(2.0, self._limit_s / 4)) if asked else None
            silent_s = time.monotonic() - self._answered_s
            if idle_s > self._limit_s and silent_s > self._limit_s / 2 and not self._over.is_set():
                account = parse_account(self._status.text)
                account = None if account is None else account._replace(reaches=self._reaches)
                if account is not None and waits_alone(account):
                    self._end_alone(account)

    def _end_alone(self, account: Account) -> None:
        """Says what this rank knows, and leaves; writing it down may take forever."""
        meeting = None if self._meeting is None else self._meeting.name
        words = alone_words(account, self._plan.mesh, self._folder.path, self._now_ns(), meeting)

        def tell() -> None:
            print(f"hybrid_runtime: {words}", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):  # it has been said; there may be no disk to write it to
                self._fail(self._rank, words, follows=False)

        telling = threading.Thread(target=tell, daemon=True)
        telling.start()
        telling.join(_LEAVES_S)
        self._leave()

    def _leave(self) -> None:
        if self._meeting is not None:
            end_if_stuck(os.environ)
        os._exit(ExitCode.ERROR)

    def _end(self, hang: Hang, scene: Scene) -> None:
        """Says why, unless another rank does; then nothing of this machine is left of the run."""
        try:
            here = _claims(self._folder.hang_told_on(socket.gethostname()))
            if here:
                print(f"hybrid_runtime: {self._words(hang)}", file=sys.stderr, flush=True)
            if here and _claims(self._folder.hang):
                self._write_down(hang, scene)
            else:
                self._wait_until_told(hang)
            if self._rank not in hang.culprits:
                words = f"{scene.plan.mesh.place(self._rank)}, {scene.accounts[self._rank].status}: left, for a hang"
                self._fail(self._rank, words, follows=True)
        finally:  # a full disk must not keep it here
            self._kill_lifeless(hang, scene)
            self._leave()

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
            self._answered_s = time.monotonic()
            told = {failure.rank for failure in read_failures(self._folder)}

    def _kill_lifeless(self, hang: Hang, scene: Scene) -> None:
        for account in (scene.accounts[rank] for rank in hang.culprits if hang.lifeless):
            if process_state(account):  # it is here, and no other process has its number
                with contextlib.suppress(ProcessLookupError):
                    os.kill(account.pid, signal.SIGKILL)


def _claims(file: Path) -> bool:
    """Whether this rank is the first to make a file; where none can be made, every rank is."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except OSError:
        return True
    return True
