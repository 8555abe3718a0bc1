"""Ends a torchrun that does not notice the end of its ranks, because it waits for a store on a machine that is lost.

torchrun asks its store several times a second whether machines have joined. Where the store's machine is cut off, the
answer never comes, and no option of torchrun ends that wait before the system gives the connection up (minutes). Its
ranks have ended, and stay in the process table because nobody takes note: by that it is known to be stuck. A torchrun
that lives takes note within a tenth of a second, and goes on as it was told to.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

_SECONDS, _IN_VAIN = 12, 3
# Of the process $1: for $4 of the next $3 seconds it has ended, and its parent is still $2.
_SCRIPT = """
second=0 in_vain=0
while [ $second -lt "$3" ]; do
  sleep 1
  second=$((second + 1))
  grep -q "^State:.Z" "/proc/$1/status" && grep -qx "PPid:.$2" "/proc/$1/status" && in_vain=$((in_vain + 1))
  if [ $in_vain -ge "$4" ]; then kill -KILL "$2"; exit; fi
done
"""


def end_if_stuck(environment: Mapping[str, str]) -> None:
    """A rank of several machines calls it just before it ends for good: leaves a process behind that looks after that.

    Whatever it needs is small and was used before, for this machine's disks may be lost too.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return
    subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT, "sh", *map(str, (os.getpid(), os.getppid(), _SECONDS, _IN_VAIN))],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd="/", start_new_session=True,
    )  # fmt: skip
