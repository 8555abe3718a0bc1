"""Action lists as flat rows of integers, so that one loop can replay every schedule.

A row is something that does one operation after another: every pipeline rank, then every directed edge. An operation
waits for at most two others. Messages are operations too:

    row 0, rank 0     0F0  0F1  ...            1F0 waits for the message, the message for 0F0 and, in lowered lists,
    row 1, rank 1          1F0  ...            for what stands before its RECV: nothing moves before both sides are
    row 2, edge 0>1   0SEND_F0 0SEND_F1        there, and nothing overtakes on an edge

On a blocking edge a message stands in the rows of both ranks instead: SEND behind its producer, RECV before its taker.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.dependencies import needs
from hybrid_runtime.schedule.messages import DirectedEdge, edge_of, partner, producers, received_by, sent_by
from hybrid_runtime.schedule.placement import StageToRank

NOTHING = -1  # an operation waits for nothing
NEVER = -2  # it waits for something that no list does
KINDS = tuple(Kind)
_NUMBER = {kind: number for number, kind in enumerate(KINDS)}
_BEFORE_MESSAGE = {Kind.F: Kind.SEND_F, Kind.I: Kind.SEND_B, Kind.B: Kind.SEND_B}


@dataclass(frozen=True)
class Rows:
    """The rows of one step.

    Attributes:
        stage_to_rank: the placement.
        edges: the directed edge of every row behind the ranks' rows.
        actions: what every operation is; a message on an edge's row is its SEND.
        row_starts: index of the first operation of every row; one entry more, the number of operations.
        classes: len(KINDS) * stage + number of the kind: what costs are looked up by.
        first, second: what an operation waits for: another's index, NOTHING or NEVER.
        blocking: edges whose messages occupy both ranks.
    """

    stage_to_rank: StageToRank
    edges: tuple[DirectedEdge, ...]
    actions: list[Action]
    row_starts: array[int]
    classes: array[int]
    first: array[int]
    second: array[int]
    blocking: frozenset[DirectedEdge]

    @property
    def num_ranks(self) -> int:
        return len(self.row_starts) - 1 - len(self.edges)

    def row(self, number: int) -> range:
        """Indices of the operations of a row."""
        return range(self.row_starts[number], self.row_starts[number + 1])

    def row_of(self, index: int) -> int:
        """The row that an operation stands in."""
        return bisect_right(self.row_starts, index) - 1


def to_rows(lists: Sequence[ActionList], stage_to_rank: StageToRank, blocking: Set[DirectedEdge] = frozenset()) -> Rows:
    """Rows of compute lists or lowered lists, one per pipeline rank; data-parallel actions are left out."""
    lowered = any(action.kind.is_send for actions in lists for action in actions)
    rows = _Building(stage_to_rank, blocking, lowered)
    for rank, actions in enumerate(lists):
        rows.add(rank, actions)
    edges = tuple(sorted(rows.messages))
    in_rows = [*rows.ranks, *([send for send, _ in rows.messages[edge]] for edge in edges)]
    operations = [operation for row in in_rows for operation in row]
    row_starts = array("q", [0])
    for row in in_rows:
        row_starts.append(row_starts[-1] + len(row))
    classes = array("q", (len(KINDS) * stage + _NUMBER[kind] for stage, kind, _ in operations))
    first, second = _dependencies(rows, operations, row_starts, edges)
    return Rows(tuple(stage_to_rank), edges, operations, row_starts, classes, first, second, frozenset(blocking))


@dataclass
class _Building:
    """Rows under construction; a place is an index in its rank's row, NOTHING the one before the first."""

    stage_to_rank: StageToRank
    blocking: Set[DirectedEdge]
    lowered: bool
    ranks: list[list[Action]] = field(default_factory=list)
    messages: dict[DirectedEdge, list[tuple[Action, int]]] = field(default_factory=lambda: defaultdict(list))
    posted: dict[Action, int] = field(default_factory=dict)  # per RECV, the place that it stands behind

    def add(self, rank: int, actions: ActionList) -> None:
        row: list[Action] = []
        for action in actions:
            if action.kind.is_compute:
                receive = received_by(action, self.stage_to_rank)
                if receive is not None and edge_of(receive, self.stage_to_rank) in self.blocking:
                    row.append(receive)
                row.append(action)
                send = None if self.lowered else sent_by(action, self.stage_to_rank)
                if send is not None:
                    self._send(row, send)
            elif action.kind.is_send:
                self._send(row, action)
            elif action.kind.is_receive:
                self.posted[action] = len(row) - 1
        self.ranks.append(row)

    def _send(self, row: list[Action], send: Action) -> None:
        edge = edge_of(send, self.stage_to_rank)
        if edge in self.blocking:
            row.append(send)
        else:
            self.messages[edge].append((send, len(row) - 1))


def _dependencies(
    rows: _Building, actions: Sequence[Action], row_starts: Sequence[int], edges: Sequence[DirectedEdge]
) -> tuple[array[int], array[int]]:
    index = {action: number for number, action in enumerate(actions)}
    first, second = array("q"), array("q")
    for action in actions[: row_starts[len(rows.ranks)]]:
        waits = [] if action.kind.is_send else _needs(action, rows, index)
        first.append(waits[0] if waits else NOTHING)
        second.append(waits[1] if len(waits) > 1 else NOTHING)
    for (source, target), row in ((edge, rows.messages[edge]) for edge in edges):
        for send, place in row:
            made = next((index[producer] for producer in producers(send) if producer in index), NEVER)
            first.append(max(made, row_starts[source] + place) if made != NEVER else NEVER)
            behind = rows.posted.get(partner(send), NOTHING)
            second.append(row_starts[target] + behind if behind != NOTHING else NOTHING)
    return first, second


def _needs(action: Action, rows: _Building, index: dict[Action, int]) -> list[int]:
    """Indices of what an operation of a rank waits for, the order of its own row left aside."""
    if action.kind.is_receive:
        return [index.get(partner(action), NEVER)]
    waits = []
    for alternatives in needs(action, len(rows.stage_to_rank)):
        source, target = rows.stage_to_rank[alternatives[0].stage], rows.stage_to_rank[action.stage]
        if source == target:
            found = next((index[other] for other in alternatives if other in index), NEVER)
        elif (source, target) in rows.blocking:
            continue  # its RECV stands directly before it
        else:
            other = alternatives[0]
            found = index.get(Action(other.stage, _BEFORE_MESSAGE[other.kind], other.microbatch), NEVER)
        waits.append(found)
    return waits
