"""Lowering: compute lists -> lists with SEND and RECV.

    rank 0 | F0 F1 B0 B1          rank 0 | RECV_B0 RECV_B1 F0 SEND_F0 F1 SEND_F1 B0 B1
    rank 1 | F0 B0 F1 B1          rank 1 | RECV_F0 RECV_F1 F0 B0 SEND_B0 F1 B1 SEND_B1

A SEND stands directly after its producer. The RECVs of a directed edge stand in the order of the *sender's* SENDs, each
as early as the pool depth allows, because a RECV only announces a buffer: the earlier it is posted, the less anybody
waits. It is never later than its consumer, even if that takes more buffers than the pool depth.

Where an edge carries both activations and gradients (loop and V placements), a bounded pool can make two ranks wait for
each other's receives: each holds back a RECV behind an action whose input the other has not sent yet. The pool is then
one deeper, and so on, until every SEND finds its RECV posted in time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Action, ActionList
from hybrid_runtime.schedule.messages import DirectedEdge, edge_of, partner, received_by, sent_by
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.walk import walk

POOL_DEPTH = 2  # receives posted and not yet consumed per edge: one under way while another is used


def lower(
    compute: Sequence[ActionList], stage_to_rank: StageToRank, *, pool_depth: int = POOL_DEPTH
) -> tuple[ActionList, ...]:
    """Adds communication to compute lists; any placement, F, B, I and W.

    Args:
        compute: per pipeline rank.
        pool_depth: receives that may be posted and not yet consumed per directed edge, if that is enough.

    Raises:
        PlanError: something is sent that no action of the receiving rank takes.
    """
    receives = _receives_in_send_order(compute, stage_to_rank)
    lowered = _lower(compute, receives, stage_to_rank, pool_depth)
    stuck = walk(lowered, stage_to_rank, rendezvous=True)
    if stuck and walk(lowered, stage_to_rank, rendezvous=False):
        return lowered  # whatever the pool; `check` says where
    while stuck:  # ends: a pool for all receives posts them before anything
        pool_depth += 1
        lowered = _lower(compute, receives, stage_to_rank, pool_depth)
        stuck = walk(lowered, stage_to_rank, rendezvous=True)
    return lowered


def _lower(
    compute: Sequence[ActionList],
    receives: Mapping[DirectedEdge, Sequence[Action]],
    stage_to_rank: StageToRank,
    pool_depth: int,
) -> tuple[ActionList, ...]:
    return tuple(
        _lower_rank(
            rank,
            actions,
            {edge: order for edge, order in receives.items() if edge[1] == rank},
            stage_to_rank,
            pool_depth,
        )
        for rank, actions in enumerate(compute)
    )


def _receives_in_send_order(
    compute: Sequence[ActionList], stage_to_rank: StageToRank
) -> dict[DirectedEdge, list[Action]]:
    receives: dict[DirectedEdge, list[Action]] = defaultdict(list)
    for actions in compute:
        for action in actions:
            send = sent_by(action, stage_to_rank)
            if send is not None:
                receives[edge_of(send, stage_to_rank)].append(partner(send))
    return dict(sorted(receives.items()))


def _lower_rank(
    rank: int,
    actions: ActionList,
    receives: Mapping[DirectedEdge, Sequence[Action]],
    stage_to_rank: StageToRank,
    pool_depth: int,
) -> ActionList:
    taken_by = [received_by(action, stage_to_rank) for action in actions]
    position = {receive: place for place, receive in enumerate(taken_by) if receive is not None}
    queues = {edge: _Queue(order, _deadlines(rank, order, position)) for edge, order in receives.items()}
    lowered: list[Action] = []
    for place, (action, receive) in enumerate(zip(actions, taken_by)):
        for queue in queues.values():
            lowered += queue.post(place, pool_depth)
        lowered.append(action)
        if receive is not None and edge_of(receive, stage_to_rank) in queues:
            queues[edge_of(receive, stage_to_rank)].outstanding -= 1
        send = sent_by(action, stage_to_rank)
        if send is not None:
            lowered.append(send)
    return tuple(lowered)


def _deadlines(rank: int, order: Sequence[Action], position: Mapping[Action, int]) -> list[int]:
    """Per receive, the compute action it must precede: its own consumer, or an earlier one of a receive behind it."""
    for receive in order:
        if receive not in position:
            raise PlanError(
                f"{partner(receive)} has no taker: pipeline rank {rank} has no action that needs {receive}; "
                "the schedule leaves out a forward or backward"
            )
    deadlines = [position[receive] for receive in order]
    for index in reversed(range(len(deadlines) - 1)):
        deadlines[index] = min(deadlines[index], deadlines[index + 1])
    return deadlines


@dataclass(slots=True)
class _Queue:
    """Receives of one edge that are still to be posted."""

    order: Sequence[Action]
    deadlines: Sequence[int]
    posted: int = 0
    outstanding: int = 0

    def post(self, place: int, pool_depth: int) -> list[Action]:
        """Receives to be posted before the compute action at `place`."""
        first = self.posted
        while self.posted < len(self.order) and (self.outstanding < pool_depth or self.deadlines[self.posted] <= place):
            self.posted += 1
            self.outstanding += 1
        return list(self.order[first : self.posted])
