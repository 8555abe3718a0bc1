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
from hybrid_runtime.schedule.messages import PRODUCERS, DirectedEdge, edge_of, partner, received_by, sent_by
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.step_costs import StageKind

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

    sends: dict[StageKind, tuple[Kind, DirectedEdge] | None] = field(default_factory=dict)  # what follows an action

    def add(self, rank: int, actions: ActionList) -> None:
        row: list[Action] = []
        for action in actions:
            if action.kind.is_compute:
                receive = received_by(action, self.stage_to_rank) if self.blocking else None
                if receive is not None and edge_of(receive, self.stage_to_rank) in self.blocking:
                    row.append(receive)
                row.append(action)
                send = None if self.lowered else self._send_after(action)
                if send is not None:
                    self._send(row, Action(action.stage, send[0], action.microbatch), send[1])
            elif action.kind.is_send:
                self._send(row, action, edge_of(action, self.stage_to_rank))
            elif action.kind.is_receive:
                self.posted[action] = len(row) - 1
        self.ranks.append(row)

    def _send_after(self, action: Action) -> tuple[Kind, DirectedEdge] | None:
        """The same for every microbatch."""
        key = action[:2]
        if key not in self.sends:
            send = sent_by(action, self.stage_to_rank)
            self.sends[key] = None if send is None else (send.kind, edge_of(send, self.stage_to_rank))
        return self.sends[key]

    def _send(self, row: list[Action], send: Action, edge: DirectedEdge) -> None:
        if edge in self.blocking:
            row.append(send)
        else:
            self.messages[edge].append((send, len(row) - 1))


def _dependencies(
    rows: _Building, actions: Sequence[Action], row_starts: Sequence[int], edges: Sequence[DirectedEdge]
) -> Iterator[list[int]]:
    """What every operation waits for. Keys are plain tuples: equal to actions, and made in a fraction of the time."""
    index: dict[tuple[int, Kind, int], int] = {action: number for number, action in enumerate(actions)}
    rules: dict[StageKind, Sequence[Sequence[StageKind]]] = {}
    for action in actions[: row_starts[len(rows.ranks)]]:
        stage, kind, i = action
        if (stage, kind) not in rules:
            rules[stage, kind] = _rule(action, rows)
        yield [
            next((index[at, what, i] for at, what in alternatives if (at, what, i) in index), NEVER)
            for alternatives in rules[stage, kind]
        ]
    for (source, target), row in ((edge, rows.messages[edge]) for edge in edges):
        for send, place in row:
            stage, kind, i = send
            made = next((index[stage, what, i] for what in PRODUCERS[kind] if (stage, what, i) in index), NEVER)
            waits = [max(made, row_starts[source] + place) if made != NEVER else NEVER]
            behind = rows.posted.get(partner(send), NOTHING) if rows.posted else NOTHING
            yield waits if behind == NOTHING else [*waits, row_starts[target] + behind]


def _rule(action: Action, rows: _Building) -> Sequence[Sequence[StageKind]]:
    """What an operation of a rank waits for, whatever its microbatch: one of each; its own row's order left aside."""
    if action.kind.is_send:
        return ()
    if action.kind.is_receive:
        return (((partner(action).stage, partner(action).kind),),)
    found: list[Sequence[StageKind]] = []
    for alternatives in needs(action, len(rows.stage_to_rank), rows.lookups):
        other = alternatives[0]
        source, target = rows.stage_to_rank[other.stage], rows.stage_to_rank[action.stage]
        if source == target or other.kind.is_lookup:
            found.append([(one.stage, one.kind) for one in alternatives])
        elif (source, target) not in rows.blocking:  # else its RECV stands directly before it
            found.append([(other.stage, _BEFORE_MESSAGE[other.kind])])
    return found
