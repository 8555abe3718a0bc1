"""Actions of a pipeline schedule and their text form, which is the one of `torch.distributed.pipelining`.

    action  := stage kind microbatch         2F0   1I2   0W3   3B1   3SEND_F1   0RECV_B2
    overlap := "(" action ";" action ")OVERLAP_F_B"      (0F7;7B3)OVERLAP_F_B

F forward, I input gradient, W weight gradient, B both in one traversal. `kSEND_Fi` sends stage k's output of microbatch
i to stage k+1, `kRECV_Fi` receives stage k's input from stage k-1; `kSEND_Bi` sends the gradient of stage k's input to
stage k-1, `kRECV_Bi` receives the gradient of stage k's output from stage k+1.

Where the embedding's rows are sharded over the pipeline ranks, `rEFi` looks microbatch i up in the rows of the rank
whose first stage is r and starts to add the result up on stage 0's rank, where 0Fi takes the sum; `rEBi` adds the
gradient of that sum, which 0EBi sends to all, to the rank's rows.

    action  := stage (EF | EB) microbatch    0EF3 on stage 0's rank, 2EF3 on that of stage 2, ...

Where requests are served, P is the forward of a prefill and D that of a decode (`serving/requests.py`); microbatch i is
then a set of cache slots. They stand in records only: what is served next is decided while it is.

An overlap is a forward and a backward that may run at the same time. Lists keep it for exchange and drawing; lowering,
replay and executor take the flattened list, in which the two stand one after the other.

Foreign lists may hold torch's data-parallel actions `0UNSHARD`, `0RESHARD` and `0REDUCE_GRAD`, which name no
microbatch; they are read and written, and otherwise ignored: data parallelism here is not part of a schedule.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final, NamedTuple


class Kind(enum.Enum):
    """What an action does."""

    F = "F"
    I = "I"  # noqa: E741 - the field's standard letter for the input gradient
    W = "W"
    B = "B"
    EF = "EF"
    EB = "EB"
    P = "P"
    D = "D"
    SEND_F = "SEND_F"
    RECV_F = "RECV_F"
    SEND_B = "SEND_B"
    RECV_B = "RECV_B"
    UNSHARD = "UNSHARD"
    RESHARD = "RESHARD"
    REDUCE_GRAD = "REDUCE_GRAD"

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name in Python, every time

    @property
    def is_compute(self) -> bool:
        return self in _COMPUTE

    @property
    def is_lookup(self) -> bool:
        """Work on the rows of a sharded embedding."""
        return self in _LOOKUP

    @property
    def is_served(self) -> bool:
        """Work on requests: in records, never in a schedule's lists."""
        return self in (Kind.P, Kind.D)

    @property
    def is_send(self) -> bool:
        return self in (Kind.SEND_F, Kind.SEND_B)

    @property
    def is_receive(self) -> bool:
        return self in (Kind.RECV_F, Kind.RECV_B)

    @property
    def is_data_parallel(self) -> bool:
        return self in _DATA_PARALLEL


_LOOKUP = frozenset({Kind.EF, Kind.EB})
_COMPUTE = frozenset({Kind.F, Kind.I, Kind.W, Kind.B, Kind.P, Kind.D}) | _LOOKUP
_DATA_PARALLEL = frozenset({Kind.UNSHARD, Kind.RESHARD, Kind.REDUCE_GRAD})

NO_MICROBATCH: Final = -1  # of a data-parallel action


class Action(NamedTuple):
    """One step of one pipeline rank: a kind of work on one microbatch of one stage."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind.value}{'' if self.kind.is_data_parallel else self.microbatch}"


class Overlap(NamedTuple):
    """A forward and a backward (B or I) of one rank that may run at the same time."""

    forward: Action
    backward: Action

    def __str__(self) -> str:
        return f"({self.forward};{self.backward})OVERLAP_F_B"


ActionList = tuple[Action, ...]  # what one pipeline rank does, in order
Cell = Action | Overlap
CellList = tuple[Cell, ...]  # the same before it is flattened

_NUMBER = "(0|[1-9][0-9]{0,8})"
_ACTION = re.compile(f"{_NUMBER}(SEND_F|RECV_F|SEND_B|RECV_B|F|I|W|B|EF|EB|P|D){_NUMBER}")
_DATA_PARALLEL_ACTION = re.compile(f"{_NUMBER}(UNSHARD|RESHARD|REDUCE_GRAD)")
_OVERLAP = re.compile(r"\(([^();]*);([^();]*)\)OVERLAP_F_B")


def parse_action(text: str) -> Action:
    """Reads one action, e.g. "2F0".

    Raises:
        ValueError: not an action; torch's own parser is not anchored and would accept "2B0junk".
    """
    if match := _ACTION.fullmatch(text):
        return Action(int(match[1]), Kind(match[2]), int(match[3]))
    if match := _DATA_PARALLEL_ACTION.fullmatch(text):
        return Action(int(match[1]), Kind(match[2]), NO_MICROBATCH)
    raise ValueError(f"{text!r} is not an action; expected stage, kind and microbatch, for example '2F0'")


@cache
def is_action(text: str) -> bool:
    """Whether `parse_action` reads it; names of phases and collectives are none."""
    try:
        parse_action(text)
    except ValueError:
        return False
    return True


def parse_cell(text: str) -> Cell:
    """Reads one action or one overlap, e.g. "(0F7;7B3)OVERLAP_F_B".

    Raises:
        ValueError: neither; overlaps are not nested, and hold one F and then one B or I.
    """
    if not text.startswith("("):
        return parse_action(text)
    match = _OVERLAP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an overlap of two actions; expected for example '(0F7;7B3)OVERLAP_F_B'")
    overlap = Overlap(parse_action(match[1]), parse_action(match[2]))
    if overlap.forward.kind is not Kind.F or overlap.backward.kind not in (Kind.B, Kind.I):
        raise ValueError(f"{text!r} overlaps something else than one F and then one B or I")
    return overlap


def parse_actions(texts: Sequence[str]) -> ActionList:
    """Reads one rank's list."""
    return tuple(map(parse_action, texts))


def texts(actions: Sequence[Cell]) -> tuple[str, ...]:
    """The text form of a list; `parse_actions` (or `parse_cell`, where there are overlaps) reads it back exactly."""
    return tuple(map(str, actions))


def flatten(cells: Iterable[Cell]) -> ActionList:
    """The list without overlaps: the forward of each, then its backward."""
    return tuple(action for cell in cells for action in ((cell,) if isinstance(cell, Action) else cell))
