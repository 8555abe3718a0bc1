"""Messages between pipeline ranks: which compute action sends what, who takes it, and over which directed edge.

    rank 0              rank 1
    0F3 -> 0SEND_F3  ~~>  1RECV_F3 -> 1F3         edge 0>1
    0B3 <- 0RECV_B3  <~~  1SEND_B3 <- 1B3         edge 1>0

Stages on the same rank hand over without a message.
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import Action, Kind
from hybrid_runtime.schedule.placement import StageToRank

DirectedEdge = tuple[int, int]  # (source, destination) pipeline rank

_PARTNER = {
    Kind.SEND_F: (Kind.RECV_F, 1),
    Kind.RECV_F: (Kind.SEND_F, -1),
    Kind.SEND_B: (Kind.RECV_B, -1),
    Kind.RECV_B: (Kind.SEND_B, 1),
}

PRODUCERS = {Kind.SEND_F: (Kind.F,), Kind.SEND_B: (Kind.I, Kind.B)}  # kinds of action of which one makes what is sent


def partner(action: Action) -> Action:
    """The RECV that takes what a SEND sends, and the other way round: `0SEND_F3` <-> `1RECV_F3`."""
    kind, step = _PARTNER[action.kind]
    return Action(action.stage + step, kind, action.microbatch)


def edge_of(action: Action, stage_to_rank: StageToRank) -> DirectedEdge:
    """The directed edge that a SEND or RECV uses; both its stages must exist."""
    here, there = stage_to_rank[action.stage], stage_to_rank[action.stage + _PARTNER[action.kind][1]]
    return (here, there) if action.kind.is_send else (there, here)


def edge_name(edge: DirectedEdge) -> str:
    """Text form of an edge, "src>dst"."""
    return f"{edge[0]}>{edge[1]}"


def sent_by(action: Action, stage_to_rank: StageToRank) -> Action | None:
    """The SEND that a compute action's result needs, or None if the next stage is on the same rank or absent."""
    if action.kind is Kind.F:
        return _crossing(Action(action.stage, Kind.SEND_F, action.microbatch), stage_to_rank)
    if action.kind in (Kind.I, Kind.B):
        return _crossing(Action(action.stage, Kind.SEND_B, action.microbatch), stage_to_rank)
    return None


def received_by(action: Action, stage_to_rank: StageToRank) -> Action | None:
    """The RECV that a compute action's input needs, or None if it comes from the same rank or from nowhere."""
    if action.kind is Kind.F:
        return _crossing(Action(action.stage, Kind.RECV_F, action.microbatch), stage_to_rank)
    if action.kind in (Kind.I, Kind.B):
        return _crossing(Action(action.stage, Kind.RECV_B, action.microbatch), stage_to_rank)
    return None


def producers(send: Action) -> tuple[Action, ...]:
    """The compute actions of which one makes what a SEND sends."""
    return tuple(Action(send.stage, kind, send.microbatch) for kind in PRODUCERS[send.kind])


def _crossing(message: Action, stage_to_rank: StageToRank) -> Action | None:
    other = message.stage + _PARTNER[message.kind][1]
    if not 0 <= other < len(stage_to_rank):
        return None
    return message if stage_to_rank[other] != stage_to_rank[message.stage] else None
