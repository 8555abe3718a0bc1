"""Interleaved 1F1B: several stages per rank in the loop placement (Narayanan et al. 2021, arXiv 2104.04473, section
2.2; the order is that of torch.distributed.pipelining's ScheduleInterleaved1F1B).

    2 ranks, 2 stages on each, 4 microbatches
    rank 0 | 0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3
    rank 1 | 1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3

Idle per rank: (pp_degree - 1)(F + B) / virtual_stages, for virtual_stages times the messages of 1F1B and a longer
warm-up: rank r holds ((v-1) pp_degree + 2 (pp_degree - 1 - r) + 1) / v microbatches. With one stage per rank this is
not 1F1B, for its warm-up is twice as long.
"""

from __future__ import annotations

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Action, ActionList, Kind

Visit = tuple[int, int]  # (which of the rank's stages, microbatch)


def interleaved_1f1b(pp_degree: int, num_microbatches: int, virtual_stages: int = 2) -> tuple[ActionList, ...]:
    """One list per rank, `virtual_stages` stages on each.

    Raises:
        PlanError: the microbatches do not form equal rounds (`round_size`).
    """
    return tuple(_rank(rank, pp_degree, num_microbatches, virtual_stages) for rank in range(pp_degree))


def round_size(pp_degree: int, num_microbatches: int) -> int:
    """Microbatches that visit a rank's stages together: there are num_microbatches // pp_degree rounds, all equal.

    Raises:
        PlanError: they do not divide; names the nearest numbers that do.
    """
    rounds = max(1, num_microbatches // pp_degree)
    size, rest = divmod(num_microbatches, rounds)
    if rest == 0:
        return size
    below, above = num_microbatches - 1, num_microbatches + 1
    while below % (below // pp_degree):
        below -= 1
    while above % (above // pp_degree):
        above += 1
    raise PlanError(
        f"{num_microbatches} microbatches on {pp_degree} pipeline ranks make {rounds} rounds, which are not equal: "
        f"an interleaved schedule accepts {below} or {above} microbatches"
    )


def forward_visits(pp_degree: int, num_microbatches: int, virtual_stages: int) -> list[Visit]:
    """In which order every rank does its forwards: round by round, stage by stage."""
    size = round_size(pp_degree, num_microbatches)
    return [
        (turn, microbatch)
        for first in range(0, num_microbatches, size)
        for turn in range(virtual_stages)
        for microbatch in range(first, first + size)
    ]


def backward_visits(forward: list[Visit], virtual_stages: int) -> list[Visit]:
    """The same rounds with the rank's last stage first."""
    return [(virtual_stages - 1 - turn, microbatch) for turn, microbatch in forward]


def _rank(rank: int, pp_degree: int, num_microbatches: int, virtual_stages: int) -> ActionList:
    forward = forward_visits(pp_degree, num_microbatches, virtual_stages)
    size = round_size(pp_degree, num_microbatches)
    warm_up = min((virtual_stages - 1) * size + 2 * (pp_degree - 1 - rank), len(forward))
    forwards = [Action(turn * pp_degree + rank, Kind.F, microbatch) for turn, microbatch in forward]
    backwards = [
        Action(turn * pp_degree + rank, Kind.B, microbatch)
        for turn, microbatch in backward_visits(forward, virtual_stages)
    ]
    actions = forwards[:warm_up]
    for pair in zip(forwards[warm_up:], backwards):
        actions += pair
    return (*actions, *backwards[len(forward) - warm_up :])
