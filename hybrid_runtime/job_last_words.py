"""What a rank says when it ends badly: one sentence on standard error and in the run folder, whatever went wrong.

    an exception              rank 3 (dp 0, pp 1, tp 1), stage 1, step 7, 1B5, unit 2.mlp: ValueError: ...
    out of memory             rank 3 (...), stage 1, step 0, 1F5, unit 2.mlp: out of memory: 64 MiB more were ...
    another rank ended        rank 2 (...), stage 1, step 7, 1RECV_F6: lost the connection to another rank, ...
    another is not heard      rank 2 (...), stage 1, step 7, 1RECV_F6: heard nothing of another rank for 1800 s: ...
    torchrun stops it         rank 0 (...), stage 0, step 7, 0B4: stopped by SIGTERM
    told to leave in time     stopped by SIGTERM after step 7 of 100; checkpoints/x/step-00000007 is whole: ...

The traceback goes into a file beside the sentence. What the rank was doing comes from its own status file, so the
sentence is the same that `hybrid-runtime` finds for a rank that was killed and could say nothing.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import torch.distributed as dist

from hybrid_runtime.checkpoint.folders import whole
from hybrid_runtime.comm.start import Launch
from hybrid_runtime.errors import EnvironmentProblem, HybridRuntimeError, RunError, UsageError
from hybrid_runtime.faults.lost import explain_lost
from hybrid_runtime.faults.stuck_torchrun import end_if_stuck
from hybrid_runtime.job_out_of_memory import MemoryFacts
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.run_folder import Failure, RunFolder, reserve_failure, write_failure
from hybrid_runtime.telemetry.status import whereabouts

_STOPS = (signal.SIGTERM, signal.SIGINT)
# How gloo and NCCL say that the other end of a connection is gone.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
# How they say that nothing came for measurement.timeout_s.
_SILENT = re.compile(r"Timed out waiting (\d+)ms for|Timeout\(ms\)=(\d+)")


class LastWords:
    """Learns who and where this rank is while it starts.

    Attributes:
        folder, mesh, memory: None until they are known.
        checkpoints: their folder, where the run writes some.
        grace_s: what SIGTERM leaves the rank to finish its step, write a checkpoint and leave by itself; 0: nothing.
        asked_to_stop: SIGTERM has come, and the grace runs.
    """

    def __init__(self) -> None:
        self.launch = Launch(0, 0, 1, 1)
        self.mesh: Mesh | None = None
        self.folder: RunFolder | None = None
        self.memory: MemoryFacts | None = None
        self.checkpoints: Path | None = None
        self.grace_s = 0
        self.asked_to_stop = False

    def begin(self, folder: RunFolder) -> None:
        """The run folder is known: what an earlier attempt of this rank left there is no longer true."""
        self.folder = folder
        rank = f"rank{self.launch.rank}"
        stale = [folder.status / rank, folder.failures / f"{rank}.json", folder.hang_told_on(socket.gethostname())]
        for old in stale if self.launch.rank else [*stale, folder.hang]:
            old.unlink(missing_ok=True)
        reserve_failure(folder, self.launch.rank)

    def say(self, problem: BaseException) -> int:
        """Says why this rank failed and writes it down; returns the exit code."""
        problem = _in_words(problem)
        plan = None if self.memory is None else self.memory.plan
        if lost_peer := _is_lost_peer(problem):
            words, lost_peer = explain_lost(self._status, plan, self.launch.rank)
            message = f"{self._where()}: {words}"
        else:
            message = self._sentence(problem)
        code = int(problem.exit_code if isinstance(problem, HybridRuntimeError) else RunError.exit_code)
        alike = getattr(problem, "alike", False) or not _in_the_run()  # every rank says the same
        if self.launch.local_rank == 0 or not alike:
            sys.stderr.write(f"hybrid_runtime: {message}\n")  # in one piece: other ranks say theirs into the same pipe
            sys.stderr.flush()
        if self.folder is not None:
            failure = Failure(self.launch.rank, message, code, time.monotonic_ns(), lost_peer)
            self._write_down(self.folder, failure, "".join(traceback.format_exception(problem)))
        if self.launch.world_size > self.launch.local_world_size:
            end_if_stuck(os.environ)
        return code

    def _write_down(self, folder: RunFolder, failure: Failure, details: str) -> None:
        try:
            write_failure(folder, failure, details)
        except OSError as problem:
            words = f"{folder.failures}: not all of this could be written down ({problem.strerror})"
            print(f"hybrid_runtime: {words}", file=sys.stderr, flush=True)

    def watch_signals(self) -> None:
        """From now on SIGTERM and SIGINT end this process, with a sentence: at once, or SIGTERM when the grace is over.

        Python's own handlers run between two bytecodes of the main thread, which may be waiting in C for a rank that
        will never answer; the wake-up pipe is written at once, and a thread waits for it.
        """
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        for number in _STOPS:
            signal.signal(number, lambda number, frame: None)
        threading.Thread(target=self._stop, args=(read_end,), name="last words", daemon=True).start()

    def _stop(self, read_end: int) -> None:
        number = signal.Signals(os.read(read_end, 1)[0])
        if number == signal.SIGTERM and self.grace_s and not self._another_failed():
            self.asked_to_stop = True
            self._leave_time(read_end)
        print(f"hybrid_runtime: {self._where()}: stopped by {number.name}", file=sys.stderr, flush=True)
        os._exit(128 + number)

    def _leave_time(self, read_end: int) -> None:
        """Until the grace is over, somebody presses Ctrl-C, or another rank fails.

        SIGTERM itself comes again: a scheduler signals every process of a job, and torchrun passes on its own.
        """
        until_s = time.monotonic() + self.grace_s
        while (left_s := until_s - time.monotonic()) > 0:
            again = select.select([read_end], [], [], left_s)[0]
            if again and (os.read(read_end, 1)[0] == signal.SIGINT or self._another_failed()):
                return

    def _another_failed(self) -> bool:
        """Then torchrun stops the others because of it, and they cannot finish a step together."""
        return self.folder is not None and any(self.folder.failures.glob("rank*.json"))

    def _where(self) -> str:
        return whereabouts(self._status, self.mesh, self.launch.rank)

    @property
    def _status(self) -> Path:
        return Path() if self.folder is None else self.folder.status

    def _sentence(self, problem: BaseException) -> str:
        memory = None if self.memory is None else self.memory.words(problem)
        if memory is not None:
            return f"{getattr(problem, 'where', None) or self._where()}: {memory}"
        text = str(problem) if isinstance(problem, UsageError) else _first_line(problem)
        if not isinstance(problem, HybridRuntimeError):
            text = f"{type(problem).__name__}: {text}"
        elif not _in_the_run() or getattr(problem, "alike", False) or text.startswith(f"rank {self.launch.rank} "):
            return text
        return f"{self._where()}: {text}{self._what_is_whole(problem)}"

    def _what_is_whole(self, problem: BaseException) -> str:
        """Of a machine that lacks something: from where the run can go on when that is mended."""
        found = whole(self.checkpoints) if self.checkpoints and isinstance(problem, EnvironmentProblem) else []
        return f"; {found[-1]} is whole: then run the same command again with --resume latest" if found else ""


def _in_the_run() -> bool:
    """Whether the ranks have joined; from then on each may fail for a reason of its own."""
    return dist.is_initialized()


def _first_line(problem: BaseException) -> str:
    """Torch's messages may go on for pages of advice and C++ frames."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def _is_lost_peer(problem: BaseException | None) -> bool:
    while problem is not None:
        if isinstance(problem, RuntimeError) and any(words in str(problem) for words in _LOST):
            return True
        problem = problem.__cause__
    return False


def _in_words(problem: BaseException) -> BaseException:
    """A wait for another rank that ended in vain as a sentence; every other problem as it is."""
    cause: BaseException | None = problem
    while cause is not None and not (isinstance(cause, RuntimeError) and _SILENT.search(str(cause))):
        cause = cause.__cause__
    silent = _SILENT.search(str(cause))
    if silent is None:
        return problem
    waited_s = int(silent[silent.lastindex or 1]) / 1000
    words = RunError(
        f"heard nothing of another rank for {waited_s:g} s: it hangs, or its machine or the network to it is lost "
        "(measurement.timeout_s says how long is waited)"
    )
    words.__cause__ = problem
    return words
