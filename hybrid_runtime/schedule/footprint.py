"""What action lists make a rank hold at once: microbatches in flight and receive buffers. Order alone decides both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.messages import DirectedEdge, edge_name, edge_of, received_by
from hybrid_runtime.schedule.placement import StageToRank


def peak_in_flight(actions: Iterable[Action]) -> int:
    """Largest number of (stage, microbatch) pairs of one rank whose activations are held at once.

    F begins to hold; B or W lets go at its end. An I does not: the weight gradient still needs the inputs. Lists
    without any backward hold a microbatch only while its F runs.
    """
    kinds = [action.kind for action in actions if action.kind in (Kind.F, Kind.B, Kind.W)]
    if Kind.B not in kinds and Kind.W not in kinds:
        return int(Kind.F in kinds)
    held = peak = 0
    for kind in kinds:
        held += 1 if kind is Kind.F else -1
        peak = max(peak, held)
    return peak


def receive_depth(lists: Sequence[ActionList], stage_to_rank: StageToRank) -> dict[str, int]:
    """Per directed edge "src>dst", the largest number of receives posted and not yet consumed.

    A receive is consumed when the action that needs it ends. This is how many buffers the executor must pool; the ones
    that a microbatch in flight keeps until its backward come on top (`peak_in_flight`).
    """
    depth: dict[DirectedEdge, int] = {}
    for actions in lists:
        outstanding: dict[DirectedEdge, int] = defaultdict(int)
        for action in actions:
            receive = action if action.kind.is_receive else received_by(action, stage_to_rank)
            if receive is None:
                continue
            edge = edge_of(receive, stage_to_rank)
            outstanding[edge] += 1 if action.kind.is_receive else -1
            depth[edge] = max(depth.get(edge, 0), outstanding[edge])
    return {edge_name(edge): count for edge, count in sorted(depth.items())}
