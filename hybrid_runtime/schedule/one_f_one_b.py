"""1F1B: after a warm-up that fills the pipeline, one forward and one backward in turn (Narayanan et al. 2021,
"Efficient Large-Scale Language Model Training on GPU Clusters", arXiv 2104.04473; PipeDream-Flush).

    rank 0 | F0 F1 F2 B0 F3 B1 B2 B3
    rank 1 | F0 F1 B0 F2 B1 F3 B2 B3
    rank 2 | F0 B0 F1 B1 F2 B2 F3 B3

Idle per rank as GPipe's, but rank r keeps only pp_degree - r microbatches in flight.
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import Action, ActionList, Kind


def one_f_one_b(pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """One list per rank, one stage per rank; any num_microbatches >= 1, also fewer than ranks."""
    return tuple(_rank(stage, pp_degree, num_microbatches) for stage in range(pp_degree))


def _rank(stage: int, pp_degree: int, num_microbatches: int) -> ActionList:
    warm_up = min(pp_degree - 1 - stage, num_microbatches)
    actions = [Action(stage, Kind.F, microbatch) for microbatch in range(warm_up)]
    for microbatch in range(num_microbatches - warm_up):
        actions += [Action(stage, Kind.F, warm_up + microbatch), Action(stage, Kind.B, microbatch)]
    actions += [Action(stage, Kind.B, microbatch) for microbatch in range(num_microbatches - warm_up, num_microbatches)]
    return tuple(actions)
