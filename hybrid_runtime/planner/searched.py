"""`pipeline.schedule = "auto"`: lists searched for a plan's own stage FLOPs.

Every rank plans on its own, so nothing here may depend on a clock: the search gets a fixed amount of work instead of
seconds, and equal arguments give equal lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import ActionList
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.step_costs import StageKind, StepCosts, Time, activation_bytes

# Actions replayed while annealing, at most: some ten seconds of one core. A try replays up to all actions of a step.
MOST_REPLAYED = 250_000_000


def searched_lists(
    stage_to_rank: StageToRank,
    num_microbatches: int,
    durations: Mapping[StageKind, Time],
    in_flight_limit: int | None,
    seed: int,
) -> tuple[ActionList, ...]:
    """The lowered lists of the shortest step found, one per pipeline rank.

    Args:
        durations: of F, I and W of every stage, in any unit.
        in_flight_limit: most microbatches of a rank's whole share whose activations a rank may hold at once; None for
            one more than there are ranks.
        seed: equal arguments give equal lists.

    Raises:
        PlanError: no schedule found holds so few microbatches.
    """
    from hybrid_runtime.schedule.auto.search import (
        search,
    )  # compiled loops: numba takes a quarter of a second to import

    num_ranks = max(stage_to_rank) + 1
    limit = in_flight_limit or num_ranks + 1
    costs = StepCosts(durations, action_bytes=activation_bytes([1] * len(stage_to_rank)))
    tries = max(1, MOST_REPLAYED // (3 * len(stage_to_rank) * num_microbatches))
    limits = [limit * list(stage_to_rank).count(rank) for rank in range(num_ranks)]
    try:
        found = search(
            num_ranks, num_microbatches, costs, limits, seed, math.inf, stage_to_rank=stage_to_rank, most_tries=tries
        )
    except PlanError:
        raise PlanError(
            f"pipeline.in_flight_limit = {limit}: no schedule was found in which every one of {num_ranks} pipeline "
            f"ranks holds at most {limit} microbatches at once; raise it"
        ) from None
    assert found.complete, "a search without a clock ends by itself"
    return lower(found.lists, stage_to_rank)
