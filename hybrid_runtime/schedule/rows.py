"""Action lists as flat rows of integers, so that one loop can replay every schedule.

A row is something that does one operation after another: every pipeline rank, then every directed edge. Messages are
operations too:

    row 0, rank 0     0F0  0F1  ...            1F0 waits for the message, the message for 0F0 and, in lowered lists,
    row 1, rank 1          1F0  ...            for what stands before its RECV: nothing moves before both sides are
    row 2, edge 0>1   0SEND_F0 0SEND_F1        there, and nothing overtakes on an edge

The sums of a sharded embedding are no operations: 0F0 waits for every rank's EF0, each a hop earlier than that rank's
result is there.

On a blocking edge a message stands in the rows of both ranks instead: SEND behind its producer, RECV before its taker.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.dependencies import lookup_stages, needs
from hybrid_runtime.schedule.messages import DirectedEdge, edge_of, partner, producers, received_by, sent_by
from hybrid_runtime.schedule.placement import StageToRank

NOTHING = -1  # no operation
NEVER = -2  # one that no list holds
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
        waits: indices of the operations that are waited for, or NEVER: of the first operation, then of the second ...
        wait_starts: where in `waits` those of every operation begin; one entry more, their number.
        blocking: edges whose messages occupy both ranks.
    """

    stage_to_rank: StageToRank
    edges: tuple[DirectedEdge, ...]
    actions: list[Action]
    row_starts: array[int]
    classes: array[int]
    waits: array[int]
    wait_starts: array[int]
    blocking: frozenset[DirectedEdge]

    @property
    def num_ranks(self) -> int:
        return len(self.row_starts) - 1 - len(self.edges)

    def row(self, number: int) -> range:
        """Indices of the operations of a row."""
        return range(self.row_starts[number], self.row_starts[number + 1])

    def waits_of(self, index: int) -> array[int]:
        """What an operation waits for beside the one before it in its row."""
        return self.waits[self.wait_starts[index] : self.wait_starts[index + 1]]

    def row_of(self, index: int) -> int:
        """The row that an operation stands in."""
        return bisect_right(self.row_starts, index) - 1


def to_rows(lists: Sequence[ActionList], stage_to_rank: StageToRank, blocking: Set[DirectedEdge] = frozenset()) -> Rows:
    """Rows of compute lists or lowered lists, one per pipeline rank; data-parallel actions are left out."""
    lowered = any(action.kind.is_send for actions in lists for action in actions)
    rows = _Building(stage_to_rank, blocking, lowered, lookup_stages(lists))
    for rank, actions in enumerate(lists):
        rows.add(rank, actions)
    edges = tuple(sorted(rows.messages))
    in_rows = [*rows.ranks, *([send for send, _ in rows.messages[edge]] for edge in edges)]
    operations = [operation for row in in_rows for operation in row]
    row_starts = array("q", [0])
    for row in in_rows:
        row_starts.append(row_starts[-1] + len(row))
    classes = array("q", (len(KINDS) * stage + _NUMBER[kind] for stage, kind, _ in operations))
    waits, wait_starts = array("q"), array("q", [0])
    for waited in _dependencies(rows, operations, row_starts, edges):
        waits.extend(waited)
        wait_starts.append(len(waits))
    return Rows(tuple(stage_to_rank), edges, operations, row_starts, classes, waits, wait_starts, frozenset(blocking))


@dataclass
class _Building:
    """Rows under construction; a place is an index in its rank's row, NOTHING the one before the first."""

    stage_to_rank: StageToRank
    blocking: Set[DirectedEdge]
    lowered: bool
    lookups: tuple[int, ...]
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
) -> Iterator[list[int]]:
    """What every operation waits for."""
    index = {action: number for number, action in enumerate(actions)}
    for action in actions[: row_starts[len(rows.ranks)]]:
        yield [] if action.kind.is_send else _needs(action, rows, index)
    for (source, target), row in ((edge, rows.messages[edge]) for edge in edges):
        for send, place in row:
            made = next((index[producer] for producer in producers(send) if producer in index), NEVER)
            waits = [max(made, row_starts[source] + place) if made != NEVER else NEVER]
            behind = rows.posted.get(partner(send), NOTHING)
            yield waits if behind == NOTHING else [*waits, row_starts[target] + behind]


def _needs(action: Action, rows: _Building, index: dict[Action, int]) -> list[int]:
    """Indices of what an operation of a rank waits for, the order of its own row left aside."""
    if action.kind.is_receive:
        return [index.get(partner(action), NEVER)]
    waits = []
    for alternatives in needs(action, len(rows.stage_to_rank), rows.lookups):
        source, target = rows.stage_to_rank[alternatives[0].stage], rows.stage_to_rank[action.stage]
        if source == target or alternatives[0].kind.is_lookup:
            found = next((index[other] for other in alternatives if other in index), NEVER)
        elif (source, target) in rows.blocking:
            continue  # its RECV stands directly before it
        else:
            other = alternatives[0]
            found = index.get(Action(other.stage, _BEFORE_MESSAGE[other.kind], other.microbatch), NEVER)
        waits.append(found)
    return waits
