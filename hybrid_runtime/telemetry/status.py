"""What a rank is doing right now and did last, in a file that outlives it: `status/rank<R>`, of fixed size.

    rank=3 step=12           stage=1 action=1B5
    pid=4711 since=88213 clock=0 host=node1                      who it is, and what to add to compare its times
    beat=81734009155331 reaches=yes                              by its watcher: it lives; whether its machine still
                                                                 reaches where the ranks met ("-": nobody asked)
    wait=1RECV_B6 on=pp=2 at=81734001200334                      what it waits for at that beat, on which axis; "-" for
                                                                 nothing, and since when that
       81734001198112      41 1F7                               its last actions, a ring: time, number in the step, text
       81734001199876      42 1SEND_F7

The file is mapped into memory and an action is one or two copies of a few bytes, so it costs half a microsecond and
the operating system keeps it when the rank is killed. Waits are many more than actions where tensor ranks share a
layer, and only long ones matter: they are remembered, and written down with the next beat. What a watcher does it does
with calls that may wait for a lost disk without holding up the other threads, which a copy into the mapping would.
Torch-free: the launcher reads the first line, and who looks for the cause of a hang the rest (`account.py`).
"""

from __future__ import annotations

import mmap
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.mesh import Mesh

KEPT_ACTIONS = 64
_STEP_BYTES, _DOING_BYTES, _TEXT_BYTES, _WAIT_BYTES = 12, 72, 40, 100
_UNASKED, _ANSWERS = b"-  ", {True: b"yes", False: b"no "}
_ACTION_STAGE = re.compile(r"(\d+)[A-Z]")
_LINE = re.compile(r"rank=(\d+) step=(\S+) +stage=(\S+) action=(.*?) *\n")


class Status(NamedTuple):
    """What a status file says.

    Attributes:
        step: None before the first step.
        stage: the stage of the action, or all stages of the rank for work that belongs to none.
        action: text of the last action or phase that began, for example "1B5".
    """

    rank: int
    step: int | None
    stage: str
    action: str

    def __str__(self) -> str:
        """ "stage 1, step 7, 1B5": what follows a rank's name in an error message."""
        step = "before the first step" if self.step is None else f"step {self.step}"
        return f"stage {self.stage}, {step}, {self.action}"


class StatusFile:
    """The writing end, held by the rank itself. Any thread may write.

    Args:
        path: usually `RunFolder.status / "rank<R>"`; an older file there is overwritten.
        stages: the rank's stages.
        clock_offset_ns: what is added to this host's clock to compare it with other hosts'.

    Raises:
        EnvironmentProblem: the file cannot be created.
    """

    def __init__(self, path: Path, rank: int, stages: Sequence[int], clock_offset_ns: int = 0) -> None:
        self._stages = ",".join(map(str, stages)) or "-"
        self._texts: dict[str, tuple[bytes, bytes]] = {}
        self._current = ""
        self._count = self._next = self._began_ns = 0
        self._is_waiting, self._waits = False, ("-", "-", 0)  # the wait under way or over: name, axis, since when
        who = (
            f"pid={os.getpid()} since={process_start(os.getpid())} clock={clock_offset_ns} host={socket.gethostname()}"
        )
        line, ring_line = self._text("starting")
        before = [f"rank={rank} step=".encode(), b"-".ljust(_STEP_BYTES), line, f"\n{who}\nbeat=".encode()]
        after = [b"%20d" % 0, b" reaches=", _UNASKED, b"\nwait=", b"-".ljust(_WAIT_BYTES), b"\n"]
        ends = [0]
        for part in (*before, *after):
            ends.append(ends[-1] + len(part))
        _, self._step, self._doing, _, beat, _, reaches, _, self._wait, _ = map(slice, ends, ends[1:])
        self._beat_at, self._reaches_at = beat.start, reaches.start
        empty = b"%20d %7d %s\n" % (0, 0, b"".ljust(_TEXT_BYTES))
        starts = [ends[-1] + k * len(empty) for k in range(KEPT_ACTIONS)]
        self._ring = [(slice(at, at + 28), slice(at + 29, at + 29 + _TEXT_BYTES)) for at in starts]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join((*before, *after, *[empty] * KEPT_ACTIONS)))
            self._file = os.open(path, os.O_RDWR)
            self._map = mmap.mmap(self._file, 0)
        except OSError as problem:
            raise EnvironmentProblem(
                f"{path}: the status file cannot be written ({problem.strerror}); free space or use another run folder"
            ) from None
        self._note(ring_line)
        self.beat()

    def step(self, step: int) -> None:
        """A step begins."""
        text = str(step).encode()
        self._map[self._step] = text.ljust(_STEP_BYTES)
        self._current, self._count = "", 0
        self._note((b"step " + text).ljust(_TEXT_BYTES))

    def doing(self, action: str) -> None:
        """An action or phase begins; said again, it is the same one."""
        if action == self._current:
            return
        self._current = action
        texts = self._texts.get(action)
        if texts is None:
            texts = self._texts[action] = self._text(action)
        self._map[self._doing] = texts[0]
        self._note(texts[1])

    def wait(self, name: str, axis: str) -> None:
        """A wait for other ranks begins, e.g. ("all_reduce", "tp") or ("1RECV_F3", "pp=0"): the last part says whom."""
        self._waits = (name, axis, monotonic_ns())
        self._is_waiting = True

    def go_on(self) -> None:
        """The wait is over; when it began can still be read."""
        self._is_waiting = False

    @property
    def idle_s(self) -> float:
        """For how long neither an action nor a wait has begun."""
        return (monotonic_ns() - max(self._began_ns, self._waits[2])) / 1e9

    @property
    def text(self) -> str:
        """What the file would say after a beat, from this process's own memory: no disk is asked."""
        said = self._map[:]
        return (said[: self._wait.start] + self._wait_text() + said[self._wait.stop :]).decode("utf-8", "replace")

    def beat(self) -> None:
        """This process lives, and threads of it are run; what it waits for.

        Raises:
            OSError: the disk is lost; the same of `reaches` and `flush`.
        """
        os.pwrite(self._file, b"%20d" % monotonic_ns(), self._beat_at)
        os.pwrite(self._file, self._wait_text(), self._wait.start)

    def reaches(self, answer: bool) -> None:
        """Whether this machine reaches where the ranks met."""
        os.pwrite(self._file, _ANSWERS[answer], self._reaches_at)

    def flush(self) -> None:
        """Other machines see what was written."""
        os.fsync(self._file)

    def close(self) -> None:
        """Lets go of the file; what it says stays, the wait that was not over included."""
        self._map[self._wait] = self._wait_text()
        self._map.close()
        os.close(self._file)

    def _wait_text(self) -> bytes:
        is_waiting, (name, axis, since_ns) = self._is_waiting, self._waits
        text = f"{name if is_waiting else '-'} on={axis} at={since_ns}".encode()
        return text[:_WAIT_BYTES].ljust(_WAIT_BYTES)

    def _note(self, text: bytes) -> None:
        when, what = self._ring[self._next]
        self._map[what] = text
        self._began_ns = now_ns = monotonic_ns()
        self._map[when] = b"%20d %7d" % (now_ns, self._count)
        self._count += 1
        self._next = (self._next + 1) % KEPT_ACTIONS

    def _text(self, action: str) -> tuple[bytes, bytes]:
        """What the first line says of an action, and the ring."""
        match = _ACTION_STAGE.match(action)
        stage = match[1] if match else self._stages
        line = f"stage={stage} action={action}".encode()
        return line[:_DOING_BYTES].ljust(_DOING_BYTES), action.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES)


def process_start(pid: int) -> int:
    """When a process began, in the system's ticks: a number used again is another process's; -1 where unknown."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return -1


def read_status(path: Path) -> Status | None:
    """What the rank was doing when it last wrote; None when it died before it could say, or the file is not one."""
    try:
        return parse_status(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def parse_status(text: str) -> Status | None:
    """What the first line of a status file says; None where it is not one."""
    match = _LINE.match(text)
    if match is None:
        return None
    step = int(match[2]) if match[2].isdigit() else None
    return Status(int(match[1]), step, match[3], match[4])


def whereabouts(folder: Path, mesh: Mesh | None, rank: int) -> str:
    """ "rank 3 (dp 0, pp 1, tp 1), stage 1, step 7, 1B5": as much of it as is known.

    Args:
        folder: `RunFolder.status`.
    """
    place = f"rank {rank}" if mesh is None or rank >= mesh.world_size else str(mesh.place(rank))
    status = read_status(folder / f"rank{rank}")
    return f"{place}, before it was set up" if status is None else f"{place}, {status}"
