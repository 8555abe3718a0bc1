"""Walks lowered lists to see whether they can finish: every rank in its own order, until all are done or none can move.

Two kinds of sends. *Buffered*: a SEND ends at once, as `isend` does. *Rendezvous*: a SEND ends only when its RECV has
been posted; this is stricter, and what a transport without buffers does. In both, a RECV only posts a buffer and never
blocks, the action that needs it does, and each directed edge is first in, first out. The sums and broadcasts of a
sharded embedding are started and never wait there; their order is the checker's (`check`, rule 8).

The cycle that rendezvous catches and buffered sends hide:

    rank 0 | ... SEND_F1 RECV_B0 ...      SEND_F1 waits for RECV_F1, which stands behind SEND_B0,
    rank 1 | ... SEND_B0 RECV_F1 ...      which waits for RECV_B0, which stands behind SEND_F1
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hybrid_runtime.schedule.actions import Action, ActionList
from hybrid_runtime.schedule.dependencies import lookup_stages, needs
from hybrid_runtime.schedule.finding import Finding
from hybrid_runtime.schedule.messages import DirectedEdge, edge_of, partner, producers, received_by
from hybrid_runtime.schedule.placement import StageToRank

_ELSEWHERE = " on pipeline rank "  # in the words for what another rank has not done


def walk(lists: Sequence[ActionList], stage_to_rank: StageToRank, *, rendezvous: bool) -> tuple[Finding, ...]:
    """Where the ranks get stuck: one finding per blocked rank, with what it misses; empty if all lists finish.

    The lists must use existing stages on their own ranks and pair their SENDs and RECVs (`check` sees to that). Ranks
    that miss something of their own come first: the others most likely wait for them.
    """
    state = _Walk(lists, stage_to_rank, rendezvous)
    while sum(state.advance(rank) for rank in range(len(lists))):
        pass
    return tuple(state.stuck())


class _Walk:
    def __init__(self, lists: Sequence[ActionList], stage_to_rank: StageToRank, rendezvous: bool) -> None:
        self._lists = lists
        self._stage_to_rank = stage_to_rank
        self._rendezvous = rendezvous
        self._lookups = lookup_stages(lists)
        self._position = [0] * len(lists)
        self._done: set[Action] = set()
        self._sent: dict[DirectedEdge, int] = defaultdict(int)  # SENDs ended on each edge
        self._posted: dict[DirectedEdge, int] = defaultdict(int)
        self._turn: dict[Action, int] = {}  # of a posted RECV: its number on its edge

    def advance(self, rank: int) -> bool:
        """Runs one rank as far as it gets; says whether it moved."""
        start = self._position[rank]
        while self._position[rank] < len(self._lists[rank]):
            action = self._lists[rank][self._position[rank]]
            if self._missing(action):
                break
            self._do(action)
            self._position[rank] += 1
        return self._position[rank] > start

    def stuck(self) -> list[Finding]:
        mode = "if sends wait for their receives" if self._rendezvous else "even if sends are buffered"
        blocked = [
            (rank, position, action, self._missing(action))
            for rank, position in enumerate(self._position)
            for action in self._lists[rank][position : position + 1]
        ]
        return [
            Finding(rank, position, str(action), f"can never run, {mode}: it waits for {missing}")
            for rank, position, action, missing in sorted(blocked, key=lambda found: _ELSEWHERE in found[3])
        ]

    def _do(self, action: Action) -> None:
        if action.kind.is_compute:
            self._done.add(action)
            return
        edge = edge_of(action, self._stage_to_rank)
        if action.kind.is_receive:
            self._turn[action] = self._posted[edge]
            self._posted[edge] += 1
        else:
            self._sent[edge] += 1

    def _missing(self, action: Action) -> str:
        """What the action still waits for, in words; empty if it can run now."""
        if action.kind.is_receive:
            return ""
        return self._send_misses(action) if action.kind.is_send else self._compute_misses(action)

    def _send_misses(self, send: Action) -> str:
        if not any(producer in self._done for producer in producers(send)):
            return " or ".join(map(str, producers(send)))
        edge = edge_of(send, self._stage_to_rank)
        if self._rendezvous and self._posted[edge] <= self._sent[edge]:
            return f"{partner(send)}{_ELSEWHERE}{edge[1]}"
        return ""

    def _compute_misses(self, action: Action) -> str:
        receive = received_by(action, self._stage_to_rank)
        rank = self._stage_to_rank[action.stage]
        for alternatives in needs(action, len(self._stage_to_rank), self._lookups):
            there = self._stage_to_rank[alternatives[0].stage]
            if there == rank or alternatives[0].kind.is_lookup:
                if not any(alternative in self._done for alternative in alternatives):
                    return " or ".join(map(str, alternatives)) + ("" if there == rank else f"{_ELSEWHERE}{there}")
            elif receive not in self._turn:
                return f"{receive}, which does not stand before it"
            elif self._sent[edge_of(receive, self._stage_to_rank)] <= self._turn[receive]:
                return f"{partner(receive)}{_ELSEWHERE}{there}"
        return ""
