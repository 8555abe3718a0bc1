"""How busy a rank's cores were, and how much of that was the rank itself: what is left over were others.

The kernel counts a core's time in ticks (usually 10 ms), which is coarse for a step and fine for a hundred of them.
Involuntary context switches cannot tell a foreign process from the rank's own communication threads; this can.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from time import process_time_ns
from typing import NamedTuple

_NS_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")
# /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice; guest time is inside user time.
_BUSY = (0, 1, 2, 5, 6, 7)


class CoreTime(NamedTuple):
    """Counters since boot and since the process began, in nanoseconds; -1 where the system does not tell."""

    cores_busy_ns: int
    process_ns: int


class CoreMeter:
    """Reads both counters for a set of CPUs; time stolen by the hypervisor counts as busy."""

    def __init__(self, cpus: Sequence[int], stat: Path = Path("/proc/stat")) -> None:
        self._names = {f"cpu{cpu}".encode() for cpu in cpus}
        self._stat = stat

    def read(self) -> CoreTime:
        """Call it outside the measured window: it opens a file."""
        try:
            lines = [line.split() for line in self._stat.read_bytes().splitlines() if line.startswith(b"cpu")]
        except OSError:
            return CoreTime(-1, process_time_ns())
        mine = [line[1:] for line in lines if line[0] in self._names]
        if len(mine) != len(self._names):
            return CoreTime(-1, process_time_ns())
        ticks = sum(int(line[field]) for line in mine for field in _BUSY if field < len(line))
        return CoreTime(ticks * _NS_PER_TICK, process_time_ns())
