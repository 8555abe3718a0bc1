"""Interleaved zero bubble: the loop placement with a split backward (Qi et al. 2023, "Zero Bubble Pipeline
Parallelism", arXiv 2401.10241; the order is that of torch.distributed.pipelining's ScheduleInterleavedZeroBubble).

    2 ranks, 2 stages on each, 4 microbatches
    rank 0 | 0F0 0F1 2F0 2F1 2I0 2W0 0F2 2I1 2W1 0F3 0I0 0W0 2F2 0I1 0W1 2F3 2I2 2W2 2I3 2W3 0I2 0W2 0I3 0W3
    rank 1 | 1F0 1F1 3F0 3I0 3F1 3I1 3W0 1F2 1I0 3W1 1F3 1I1 1W0 3F2 3I2 1W1 3F3 3I3 3W2 1I2 3W3 1I3 1W2 1W3

Rank r defers its W by r actions, which fills the gaps in which it would wait. Idle per rank:
(pp_degree - 1)(F + I - W) / virtual_stages; every rank holds pp_degree microbatches if W frees what F kept.
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.interleaved_1f1b import backward_visits, forward_visits, round_size


def interleaved_zb(pp_degree: int, num_microbatches: int, virtual_stages: int = 2) -> tuple[ActionList, ...]:
    """One list per rank, `virtual_stages` stages on each.

    Raises:
        PlanError: the microbatches do not form equal rounds (`round_size`).
    """
    return tuple(_rank(rank, pp_degree, num_microbatches, virtual_stages) for rank in range(pp_degree))


def _rank(rank: int, pp_degree: int, num_microbatches: int, virtual_stages: int) -> ActionList:
    forward = forward_visits(pp_degree, num_microbatches, virtual_stages)
    backward = backward_visits(forward, virtual_stages)
    size = round_size(pp_degree, num_microbatches)
    warm_up = min((virtual_stages - 1) * size + (pp_degree - 1 - rank), len(forward))
    forwards = [Action(turn * pp_degree + rank, Kind.F, microbatch) for turn, microbatch in forward]
    inputs = [Action(turn * pp_degree + rank, Kind.I, microbatch) for turn, microbatch in backward]
    weights = [Action(stage, Kind.W, microbatch) for stage, _, microbatch in inputs]
    actions = forwards[:warm_up]
    for place, action in enumerate(inputs):
        actions += forwards[warm_up + place : warm_up + place + 1]
        actions.append(action)
        actions += weights[place - rank : place - rank + 1] if place >= rank else []
    return (*actions, *weights[max(0, len(inputs) - rank) :])
