"""Whose turn it is, and to do what: sides run blocks of steps on the same devices in turn, and the arrow is a file.

    next               {"side": "candidate", "block": 3, "purpose": "speed", ...}: that side may run its block 3
    next               "stop": everybody finishes
    candidate-3.done   the side has run it

Whoever measures writes `next` and waits for the `.done`; rank 0 of each side waits for its name. While a side waits,
its ranks sleep in a barrier and use no CPU time. What is run, and how often, need not be known when the sides start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hybrid_runtime.records import SPEED, TRACE
from hybrid_runtime.run_folder import write_whole

CANDIDATE, BASELINE = "candidate", "baseline"
_STOP = "stop"
_POLL_S = 0.01  # the side that waits must not be felt by the side that runs


@dataclass(frozen=True, slots=True)
class Turn:
    """A block of steps of one side.

    Attributes:
        block: its number within the side, from 0, growing by one.
        purpose: what the block is for (`records.TRACE`, SPEED, PLANTED, AGAINST + kind).
        unjudged_steps: steps at its start that are warm-up: all of them in a warm-up block.
        steps: how many steps it has, the unjudged ones included.
    """

    side: str
    block: int
    purpose: str
    unjudged_steps: int
    steps: int


def rounds(
    first: int, last: int, purposes: Collection[str] = (TRACE, SPEED), *, baseline: bool
) -> Iterator[tuple[str, str]]:
    """(side, purpose) of every block in rounds `first` .. `last`, from 1, in such an order that a drift hits all alike.

    round 1   candidate trace, candidate speed, baseline speed
    round 2   baseline speed, candidate speed, candidate trace         ... and so on: A B B A, and trace beside A

    Args:
        purposes: of the blocks that are run; others are left out.
        baseline: whether there is one.
    """
    everything = [(CANDIDATE, TRACE), (CANDIDATE, SPEED), (BASELINE, SPEED)][: 2 + baseline]
    row = [block for block in everything if block[1] in purposes]
    for number in range(first, last + 1):
        yield from row if number % 2 else row[::-1]


@dataclass(frozen=True, slots=True)
class Turns:
    """One side's view of the turns folder."""

    folder: Path
    side: str

    def wait_for(self, block: int, timeout_s: float, still: Callable[[], object] = lambda: None) -> Turn | None:
        """Blocks until this side may run its block of that number; None when it should stop instead.

        Args:
            timeout_s: what a step may take; another side's turn may last as long as its steps together.
            still: called now and then while nothing happens, so that the ranks that wait for this one do not give up.

        Raises:
            TimeoutError: whose turn it is did not change for too long.
        """
        since_s = told_s = time.monotonic()
        before, allowed_s = "", timeout_s
        while time.monotonic() - since_s < allowed_s:
            says = _read(self.folder / "next")
            if says == _STOP:
                return None
            turn = Turn(**json.loads(says)) if says else None
            if turn and (turn.side, turn.block) == (self.side, block):
                return turn if turn.steps else None
            if says != before:
                before, since_s, allowed_s = says, time.monotonic(), timeout_s * max(1, turn.steps if turn else 1)
            if time.monotonic() - told_s > timeout_s / 4:
                told_s = time.monotonic()
                still()
            time.sleep(_POLL_S)
        raise TimeoutError(f"{self.folder}: no turn for {self.side} block {block} within {allowed_s:.0f} s")

    def done(self, block: int) -> None:
        """This side has run `block`."""
        write_whole(self.folder / f"{self.side}-{block}.done", "")


def give_turn(folder: Path, turn: Turn, alive: Callable[[], None], wanted: Callable[[], bool] = lambda: True) -> None:
    """Lets a side run a block; waits until it has, or is no longer `wanted`. `alive` is called meanwhile, may raise."""
    if not wanted():
        return
    write_whole(folder / "next", json.dumps(asdict(turn)))
    while wanted() and not (folder / f"{turn.side}-{turn.block}.done").exists():
        alive()
        time.sleep(_POLL_S)


def finish(folder: Path, side: str, block: int) -> None:
    """Tells one side to finish, instead of running its next block; the others go on waiting."""
    write_whole(folder / "next", json.dumps(asdict(Turn(side, block, TRACE, 0, 0))))


def stop(folder: Path) -> None:
    """Tells every waiting side to finish."""
    write_whole(folder / "next", _STOP)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
