"""Ends a torchrun that does not notice the end of its ranks, because it waits for a store on a machine that is lost.

torchrun asks its store several times a second whether machines have joined. Where the store's machine is cut off, the
answer never comes, and no option of torchrun ends that wait before the system gives the connection up (minutes). All of
its ranks have ended, and stay in the process table because nobody takes note: by that it is known to be stuck. A
torchrun that lives takes note within a tenth of a second, or waits for a rank that still runs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

_SECONDS, _IN_VAIN = 30, 3
# Looks for $3 seconds at what $2 started: where $1 has ended and no other rank runs, $4 times in a row, $2 is stuck.
_SCRIPT = r"""
second=0 in_vain=0
while [ $second -lt "$3" ] && [ -d "/proc/$2" ]; do
  sleep 1
  second=$((second + 1)) ended=0 runs=0
  for child in $(cat "/proc/$2"/task/*/children); do
    if grep -q '^State:.Z' "/proc/$child/status"; then
      [ "$child" != "$1" ] || ended=1
    elif tr '\0' '\n' <"/proc/$child/environ" | grep -q '^LOCAL_RANK='; then
      runs=1
    fi
  done
  in_vain=$(((in_vain + 1) * ended * (1 - runs)))
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
