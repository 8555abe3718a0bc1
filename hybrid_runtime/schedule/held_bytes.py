"""The most bytes that every rank holds at once, when it follows its lowered list: activations and messages together.

    kept by actions        F keeps, I exchanges, W or B frees (`ActionBytes`)
    pools of buffers       per edge and size of message, as many as are ever in use at once: they go back to their pool
                           and never to the system.  [..][..][##]   ## holds an activation as well, and counts once
    on their way out       the newest message of every edge, from its SEND to the next one
    sharded embedding      sums that are under way to stage 0, the newest part and gradient sent, two gradients awaited

It counts what a rank's byte ledger counts (telemetry/ledger.py, comm/point_to_point.py, comm/lookups.py), storage by
storage, so a ledger that differs is a figure of one unit that is wrong. Only weight gradients that are computed earlier
than their W, while a collective is awaited (tensor_parallel/weight_queue.py), leave a real rank with less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.dependencies import lookup_stages
from hybrid_runtime.schedule.messages import edge_of, received_by
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.step_costs import Received, StepCosts

_AWAITED = 2  # gradients of a sharded embedding: one is used while the next is under way (comm/lookups.py)


class Held(NamedTuple):
    """Bytes at the instant at which a rank holds most: activations, and buffers that are no activations as well."""

    activations: int
    buffers: int


def held_peaks(lists: Sequence[ActionList], stage_to_rank: StageToRank, costs: StepCosts) -> tuple[Held, ...]:
    """Per pipeline rank, what it holds at its worst.

    Args:
        lists: lowered, with the lookups of a sharded embedding where there is one.
        costs: `action_bytes` with what becomes of received messages, and `message_bytes`.
    """
    lookers = {stage_to_rank[stage] for stage in lookup_stages(lists)}
    return tuple(_peak(rank, actions, stage_to_rank, costs, lookers) for rank, actions in enumerate(lists))


def _peak(rank: int, actions: ActionList, stage_to_rank: StageToRank, costs: StepCosts, lookers: set[int]) -> Held:
    home = stage_to_rank[0]
    book = _Book(stage_to_rank, costs, is_home=rank == home, sends_gradients=bool(lookers - {home}))
    book.pools = _pool_bytes(actions, stage_to_rank, costs)
    if rank != home and rank in lookers:
        gradients = sum(action.kind is Kind.EB for action in actions)
        book.pools += min(_AWAITED, gradients) * costs.message_bytes.get((0, Kind.EB), 0)
    for action in actions:
        book.enter(action)
    return book.peak


def _pool_bytes(actions: ActionList, stage_to_rank: StageToRank, costs: StepCosts) -> int:
    """Of all receive buffers that a rank ever makes."""
    in_use: dict[tuple[int, int], int] = defaultdict(int)
    most: dict[tuple[int, int], int] = defaultdict(int)
    for action in actions:
        if action.kind.is_receive:
            pool = _pool(action, stage_to_rank, costs)
            in_use[pool] += 1
            most[pool] = max(most[pool], in_use[pool])
        for receive, _ in _let_go(action, stage_to_rank, costs):
            in_use[_pool(receive, stage_to_rank, costs)] -= 1
    return sum(num_bytes * count for (_, num_bytes), count in most.items())


def _pool(receive: Action, stage_to_rank: StageToRank, costs: StepCosts) -> tuple[int, int]:
    """Sender and size: messages of one size share buffers."""
    return edge_of(receive, stage_to_rank)[0], _received(receive, costs).num_bytes


def _received(receive: Action, costs: StepCosts) -> Received:
    return costs.action_bytes.received.get((receive.stage, receive.kind), Received(0))


def _let_go(action: Action, stage_to_rank: StageToRank, costs: StepCosts) -> Iterator[tuple[Action, Received]]:
    """The messages whose buffers go back to their pool when an action ends."""
    for taker in (Kind.F, Kind.B):
        receive = received_by(Action(action.stage, taker, action.microbatch), stage_to_rank)
        if receive is not None and action.kind in _received(receive, costs).until:
            yield receive, _received(receive, costs)


@dataclass(slots=True)
class _Book:
    """What one rank holds, action by action.

    Attributes:
        pools: bytes of all its receive buffers.
        kept: bytes of activations; `shared` of them lie in receive buffers.
        newest: bytes of the newest message by where it goes.
        sums: bytes of sums that stage 0 has not taken yet.
    """

    stage_to_rank: StageToRank
    costs: StepCosts
    is_home: bool
    sends_gradients: bool
    pools: int = 0
    kept: int = 0
    shared: int = 0
    sums: int = 0
    newest: dict[object, int] = field(default_factory=dict)
    peak: Held = field(default_factory=lambda: Held(0, 0))

    def enter(self, action: Action) -> None:
        """The action begins and ends."""
        key = action.stage, action.kind
        if action.kind.is_receive or action.kind.is_data_parallel:
            return
        if action.kind.is_send:
            self.newest[edge_of(action, self.stage_to_rank)] = self.costs.message_bytes.get(key, 0)
            self._weigh(0)
            return
        held = self.costs.action_bytes
        self.kept += held.kept.get(key, 0)
        self._take(action)
        self._weigh(held.temporary.get(key, 0))
        self.kept -= held.freed.get(key, 0)
        self._give_back(action)

    def _take(self, action: Action) -> None:
        """What an action receives becomes an activation as far as it, or its W, keeps it; lookups are on their way."""
        receive = received_by(action, self.stage_to_rank)
        if receive is not None and action.kind is not Kind.B:
            self.shared += _received(receive, self.costs).kept_bytes
        num_bytes = self.costs.message_bytes.get((action.stage, action.kind), 0) if action.kind.is_lookup else 0
        if action.kind is Kind.EF and self.is_home:
            self.sums += num_bytes
        elif action.kind is Kind.EF or (action.kind is Kind.EB and self.is_home and self.sends_gradients):
            self.newest[action.kind] = num_bytes
        if action.stage == 0 and action.kind is Kind.F:
            self.sums -= self._sum.kept_bytes

    def _give_back(self, action: Action) -> None:
        if action.stage == 0 and action.kind is Kind.F:
            self.sums -= self._sum.num_bytes - self._sum.kept_bytes
        for receive, received in _let_go(action, self.stage_to_rank, self.costs):
            if (action.kind, receive.kind) != (Kind.B, Kind.RECV_B):  # a whole backward keeps no gradient
                self.shared -= received.kept_bytes

    @property
    def _sum(self) -> Received:
        """What stage 0 takes of a sharded embedding."""
        return self.costs.action_bytes.received.get((0, Kind.EF), Received(0))

    def _weigh(self, temporary: int) -> None:
        buffers = self.pools - self.shared + self.sums + sum(self.newest.values())
        if self.kept + temporary + buffers > sum(self.peak):
            self.peak = Held(self.kept + temporary, buffers)
