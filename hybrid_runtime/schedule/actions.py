"""Actions of a pipeline schedule and their text form, which is the one of `torch.distributed.pipelining`.

    action  := stage kind microbatch         2F0   1I2   0W3   3B1   3SEND_F1   0RECV_B2
    overlap := "(" action ";" action ")OVERLAP_F_B"      (0F7;7B3)OVERLAP_F_B

F forward, I input gradient, W weight gradient, B both in one traversal. `kSEND_Fi` sends stage k's output of microbatch
i to stage k+1, `kRECV_Fi` receives stage k's input from stage k-1; `kSEND_Bi` sends the gradient of stage k's input to
stage k-1, `kRECV_Bi` receives the gradient of stage k's output from stage k+1.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import NamedTuple


class Kind(enum.Enum):
    """What an action does."""

    F = "F"
    I = "I"  # noqa: E741 - the field's standard letter for the input gradient
    W = "W"
    B = "B"
    SEND_F = "SEND_F"
    RECV_F = "RECV_F"
    SEND_B = "SEND_B"
    RECV_B = "RECV_B"

    @property
    def is_compute(self) -> bool:
        return self in _COMPUTE

    @property
    def is_send(self) -> bool:
        return self in (Kind.SEND_F, Kind.SEND_B)

    @property
    def is_receive(self) -> bool:
        return self in (Kind.RECV_F, Kind.RECV_B)


_COMPUTE = frozenset({Kind.F, Kind.I, Kind.W, Kind.B})


class Action(NamedTuple):
    """One step of one pipeline rank: a kind of work on one microbatch of one stage."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind.value}{self.microbatch}"


ActionList = tuple[Action, ...]  # what one pipeline rank does, in order

_ACTION = re.compile(r"(\d{1,9})(SEND_F|RECV_F|SEND_B|RECV_B|F|I|W|B)(\d{1,9})")


def parse_action(text: str) -> Action:
    """Reads one action, e.g. "2F0".

    Raises:
        ValueError: not an action; torch's own parser is not anchored and would accept "2B0junk".
    """
    match = _ACTION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an action; expected stage, kind and microbatch, for example '2F0'")
    return Action(int(match[1]), Kind(match[2]), int(match[3]))


def parse_actions(texts: Sequence[str]) -> ActionList:
    """Reads one rank's list."""
    return tuple(map(parse_action, texts))


def texts(actions: Sequence[Action]) -> tuple[str, ...]:
    """The text form of a list; `parse_actions` reads it back exactly."""
    return tuple(map(str, actions))
