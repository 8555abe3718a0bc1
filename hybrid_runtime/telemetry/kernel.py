"""Which machine, and whose clock: names may be equal where machines differ, and differ where they are one.

equal host names, other boot ids     cloned machines, "localhost": different hosts; their names get the boot id
other host names, one boot id        containers of one machine: its cores are shared, CLOCK_MONOTONIC is the same
one boot id, other time namespaces   a container with a clock of its own: its offset is measured like a host's
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = "/proc/self/ns/time"


class Kernel(NamedTuple):
    """What a process runs on.

    Attributes:
        boot_id: of the running system; another after every start, and on every machine.
        time_namespace: whose monotonic clock the process reads; "" before Linux 5.6, which has one only.
    """

    boot_id: str
    time_namespace: str

    @property
    def clock(self) -> str:
        """Equal where CLOCK_MONOTONIC is the same."""
        return f"{self.boot_id} {self.time_namespace}"


def this_kernel(host: str) -> Kernel:
    """This process's. A system that hides its boot id is told apart by its host name."""
    boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.is_file() else host
    namespace = os.readlink(_TIME_NAMESPACE) if os.path.lexists(_TIME_NAMESPACE) else ""
    return Kernel(boot_id, namespace)


def told_apart(names: Sequence[str], kernels: Sequence[Kernel]) -> list[str]:
    """Host names of all ranks, each with the beginning of its boot id where machines have the same name."""
    machines: dict[str, set[str]] = {}
    for name, kernel in zip(names, kernels, strict=True):
        machines.setdefault(name, set()).add(kernel.boot_id)
    return [
        name if len(machines[name]) == 1 else f"{name}@{kernel.boot_id[:8]}"
        for name, kernel in zip(names, kernels, strict=True)
    ]
