"""One rank's status file read whole: what it did last, when, what it waits for, and whether its process still runs.

Torch-free. Times are nanoseconds of rank 0's clock, so that ranks of several hosts can be compared.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.telemetry.status import Status, parse_status, process_start

_WHO = re.compile(
    r"\npid=(\d+) since=(-?\d+) clock=(-?\d+) host=(.*)\nbeat= *(\d+) reaches=(\S+) *"
    r"\nwait=(?:(.+?) on=(\S+) at=(\d+))?"
)
_DID = re.compile(r"\n +(\d+) +(\d+) (.{40})(?=\n)")


class Did(NamedTuple):
    """One of a rank's last actions; `number` counts them within the step."""

    at_ns: int
    number: int
    text: str


class Waiting(NamedTuple):
    """A wait for other ranks.

    Attributes:
        name: of the collective, or the text of a receive: "all_reduce", "1RECV_F3".
        axis: among whom: "tp", "dp", "replica", "all", or "pp=0" for a neighbour of the same pipeline.
    """

    name: str
    axis: str
    at_ns: int


class Account(NamedTuple):
    """What a rank's file says.

    Attributes:
        beat_ns: when its watcher last ran.
        waiting: None where it waits for nobody.
        last: the newest actions, the oldest first; never empty.
        changed_ns: when it last came further: began an action or a wait.
        reaches: whether its machine reaches where the ranks met; None where nobody has asked.
    """

    status: Status
    pid: int
    process_start: int
    host: str
    beat_ns: int
    waiting: Waiting | None
    last: tuple[Did, ...]
    changed_ns: int
    reaches: bool | None = None

    @property
    def rank(self) -> int:
        return self.status.rank

    @property
    def number(self) -> int:
        """Of the newest action within its step: ranks with equal lists can be compared by it."""
        return self.last[-1].number

    @property
    def is_here(self) -> bool:
        """Its process runs, or ran, on this machine."""
        return self.host == socket.gethostname()


def read_account(path: Path) -> Account | None:
    """What the rank's file says; None where there is none yet, or it is not one."""
    try:
        return parse_account(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def parse_account(text: str) -> Account | None:
    """What the text of a status file says; None where it is not one."""
    status, who = parse_status(text), _WHO.search(text)
    if status is None or who is None:
        return None
    pid, since, clock_ns, host, beat_ns, reaches, name, axis, at_ns = who.groups(default="0")
    offset_ns = int(clock_ns)
    last = sorted(Did(int(at) + offset_ns, int(k), did.rstrip()) for at, k, did in _DID.findall(text) if int(at))
    waiting = Waiting(name, axis, int(at_ns) + offset_ns)
    is_over = name.startswith("-") or axis == "0"
    return Account(
        status=status,
        pid=int(pid),
        process_start=int(since),
        host=host,
        beat_ns=int(beat_ns) + offset_ns,
        waiting=None if is_over else waiting,
        last=tuple(last),
        changed_ns=max(last[-1].at_ns, waiting.at_ns),
        reaches={"yes": True, "no": False}.get(reaches),
    )


def process_state(account: Account) -> str:
    """Of a rank's process here: the letter of /proc, "T" for stopped; "" when it has ended or is not here."""
    if not account.is_here or process_start(account.pid) != account.process_start:
        return ""
    try:
        return Path(f"/proc/{account.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
