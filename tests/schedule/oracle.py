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


def keeps_every_rule(lists: Sequence[ActionList], place: Sequence[int], num_microbatches: int) -> bool:
    """For training schedules in any placement: coverage, ordered messages, gradient order, no deadlock."""
    return (
        _covers(lists, place, num_microbatches)
        and _order(lists, place, send=True) == _order(lists, place, send=False)
        and all(_gradients(actions) == sorted(_gradients(actions)) for actions in lists)
        and _acyclic(_graph(lists, place))
    )


def _covers(lists: Sequence[ActionList], place: Sequence[int], num_microbatches: int) -> bool:
    """Every (stage, microbatch) is done once, whole or split, and its messages are those to and from other ranks."""
    done = [Counter(actions) for actions in lists]
    for stage, rank in enumerate(place):
        for microbatch in range(num_microbatches):
            split = Action(stage, Kind.I, microbatch) in done[rank]
            expected = [Kind.F, *((Kind.I, Kind.W) if split else (Kind.B,))]
            expected += [Kind.RECV_F, Kind.SEND_B] if stage > 0 and place[stage - 1] != rank else []
            expected += [Kind.SEND_F, Kind.RECV_B] if stage + 1 < len(place) and place[stage + 1] != rank else []
            done[rank].subtract(Action(stage, kind, microbatch) for kind in expected)
    return not any(count for counter in done for count in counter.values())


def _order(lists: Sequence[ActionList], place: Sequence[int], *, send: bool) -> dict[tuple[int, int], list[Action]]:
    order = defaultdict(list)
    for action in (action for actions in lists for action in actions):
        if action.kind.is_send if send else action.kind.is_receive:
            order[edge_of(action, place)].append(action if send else partner(action))
    return order


def _gradients(actions: ActionList) -> list[tuple[int, int]]:
    """Stable-sorted by stage, so that sorting it once more shows whether each stage's microbatches are in order."""
    return sorted(((a.stage, a.microbatch) for a in actions if a.kind in (Kind.B, Kind.W)), key=lambda pair: pair[0])


def _graph(lists: Sequence[ActionList], place: Sequence[int]) -> Graph:
    before: Graph = defaultdict(set)
    everything = {action for actions in lists for action in actions}

    def backward(stage: int, microbatch: int) -> Action:
        whole = Action(stage, Kind.B, microbatch)
        return whole if whole in everything else Action(stage, Kind.I, microbatch)

    def needs(later: Action, earlier: Action) -> None:
        before["start", later].add(("end", earlier))

    for actions in lists:
        for earlier, later in pairwise(actions):
            needs(later, earlier)
        for action in actions:
            before["end", action].add(("start", action))
            stage, kind, microbatch = action
            if kind.is_send:
                needs(action, Action(stage, Kind.F, microbatch) if kind is Kind.SEND_F else backward(stage, microbatch))
                before["end", action].add(("start", partner(action)))
            if kind is Kind.W:
                needs(action, Action(stage, Kind.I, microbatch))
            if kind in (Kind.B, Kind.I):
                needs(action, Action(stage, Kind.F, microbatch))
            ahead = kind is Kind.F
            source = stage - 1 if ahead else stage + 1
            if kind in (Kind.F, Kind.B, Kind.I) and 0 <= source < len(place):
                receive = Action(stage, Kind.RECV_F if ahead else Kind.RECV_B, microbatch)
                if place[source] == place[stage]:
                    needs(action, Action(source, Kind.F, microbatch) if ahead else backward(source, microbatch))
                else:
                    needs(action, receive)
                    needs(action, partner(receive))
    return before


def _acyclic(before: Graph) -> bool:
    try:
        TopologicalSorter(before).prepare()
    except CycleError:
        return False
    return True
