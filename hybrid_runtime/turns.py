"""Whose turn it is: candidate and baseline run in alternating blocks on the same devices, and the arrow is a file.

    next                   "candidate 3": that side may run its block 3.  "stop": everybody finishes.
    candidate-3.done       the side has run it

The verifier writes `next` and waits for the `.done`; rank 0 of each side waits for its name. While a side waits, its
ranks sleep in a barrier and use no CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid_runtime.run_folder import write_whole

CANDIDATE, BASELINE = "candidate", "baseline"
_POLL_S = 0.01  # the side that waits must not be felt by the side that runs


def abba(blocks: int) -> Iterator[tuple[str, int]]:
    """Order of the measured blocks, numbered from 1: A B B A A B B A ... so that a drift hits both sides alike."""
    for block in range(1, blocks + 1):
        pair = (CANDIDATE, BASELINE) if block % 2 else (BASELINE, CANDIDATE)
        yield from ((side, block) for side in pair)


@dataclass(frozen=True, slots=True)
class Turns:
    """One side's view of the turns folder."""

    folder: Path
    side: str

    def wait_for(self, block: int, timeout_s: float) -> bool:
        """Blocks until this side may run `block`; False when it should stop instead.

        Raises:
            TimeoutError: nobody gave the turn in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            says = _read(self.folder / "next")
            if says == "stop":
                return False
            if says == f"{self.side} {block}":
                return True
            time.sleep(_POLL_S)
        raise TimeoutError(f"{self.folder}: no turn for {self.side} block {block} within {timeout_s:.0f} s")

    def done(self, block: int) -> None:
        """This side has run `block`."""
        write_whole(self.folder / f"{self.side}-{block}.done", "")


def give_turn(
    folder: Path, side: str, block: int, alive: Callable[[], None], wanted: Callable[[], bool] = lambda: True
) -> None:
    """Lets a side run a block; waits until it has, or is no longer `wanted`. `alive` is called meanwhile, may raise."""
    if not wanted():
        return
    write_whole(folder / "next", f"{side} {block}")
    while wanted() and not (folder / f"{side}-{block}.done").exists():
        alive()
        time.sleep(_POLL_S)


def stop(folder: Path) -> None:
    """Tells every waiting side to finish."""
    write_whole(folder / "next", "stop")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
