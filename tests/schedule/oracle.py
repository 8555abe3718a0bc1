"""A second opinion on lowered lists, by another method than the checker's: counting, and cycles in a graph.

The checker walks the lists like the ranks would. Here every action is two nodes, its start and its end, and every rule
"this happens before that" is an arrow; lists can run to their end exactly if the graph has no cycle. With rendezvous
sends there is an arrow from the start of a RECV to the end of its SEND. That graph holds all arrows of buffered sends.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.messages import edge_of, partner

Graph = dict[tuple[object, ...], set[tuple[object, ...]]]  # node -> nodes before it


def keeps_every_rule(lists: Sequence[ActionList], num_microbatches: int) -> bool:
    """For F and B schedules with one stage per rank: coverage, ordered messages, gradient order, no deadlock."""
    ranks = range(len(lists))
    return (
        all(Counter(lists[rank]) == _expected(rank, len(lists), num_microbatches) for rank in ranks)
        and _order(lists, send=True) == _order(lists, send=False)
        and all(_gradients(actions) == sorted(_gradients(actions)) for actions in lists)
        and _acyclic(_graph(lists))
    )


def _expected(rank: int, ranks: int, num_microbatches: int) -> Counter[Action]:
    kinds = [Kind.F, Kind.B]
    kinds += [Kind.RECV_F, Kind.SEND_B] if rank > 0 else []
    kinds += [Kind.SEND_F, Kind.RECV_B] if rank < ranks - 1 else []
    return Counter(Action(rank, kind, microbatch) for kind in kinds for microbatch in range(num_microbatches))


def _order(lists: Sequence[ActionList], *, send: bool) -> dict[tuple[int, int], list[Action]]:
    order = defaultdict(list)
    for action in (action for actions in lists for action in actions):
        if action.kind.is_send if send else action.kind.is_receive:
            order[edge_of(action, range(len(lists)))].append(action if send else partner(action))
    return order


def _gradients(actions: ActionList) -> list[int]:
    return [action.microbatch for action in actions if action.kind is Kind.B]


def _graph(lists: Sequence[ActionList]) -> Graph:
    before: Graph = defaultdict(set)
    for actions in lists:
        for earlier, later in pairwise(actions):
            before["start", later].add(("end", earlier))
        for action in actions:
            before["end", action].add(("start", action))
            stage, kind, microbatch = action
            if kind.is_send:
                producer = Action(stage, Kind.F if kind is Kind.SEND_F else Kind.B, microbatch)
                before["start", action].add(("end", producer))
                before["end", action].add(("start", partner(action)))
            if kind is Kind.B:
                before["start", action].add(("end", Action(stage, Kind.F, microbatch)))
            if (kind is Kind.F and stage > 0) or (kind is Kind.B and stage < len(lists) - 1):
                receive = Action(stage, Kind.RECV_F if kind is Kind.F else Kind.RECV_B, microbatch)
                before["start", action] |= {("end", receive), ("end", partner(receive))}
    return before


def _acyclic(before: Graph) -> bool:
    try:
        TopologicalSorter(before).prepare()
    except CycleError:
        return False
    return True
