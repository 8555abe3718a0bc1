"""How busy a schedule lets the ranks be at best, and how many microbatches that takes.

Reference case: equal stages, F = I = W, free communication. A rank then works for num_microbatches and idles for
`Form.idle`, whatever the number of microbatches, once there are enough of them; with fewer the lists are replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain, count

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import ActionList, Kind
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.registry import demand, find_schedule, generate, stages_per_rank
from hybrid_runtime.schedule.replay import replay
from hybrid_runtime.schedule.step_costs import StepCosts

MAX_ACTIONS = 20_000  # replayed in well under a tenth of a second


def ideal_busy(
    name: str, pp_degree: int, num_microbatches: int, workload: str, virtual_stages: int | None = None
) -> Fraction:
    """Compute-busy share of a rank, work / (work + idle), for equal stages, F = I = W and free communication.

    Exact up to `MAX_ACTIONS`; lists that are longer and yet have too few microbatches for the closed form are not made,
    and the closed form's share, which is then an upper bound, is returned.

    Raises:
        PlanError: as `generate`.
    """
    per_rank = stages_per_rank(name, virtual_stages)
    demand(name, pp_degree, num_microbatches, workload, virtual_stages)
    form = find_schedule(name).forms[workload]
    actions = 3 * pp_degree * per_rank * num_microbatches
    if num_microbatches >= form.exact_from(pp_degree) or actions > MAX_ACTIONS:
        return num_microbatches / (num_microbatches + form.idle(pp_degree, per_rank))
    lists = generate(name, pp_degree, num_microbatches, workload, per_rank)
    return busy_of_equal_stages(lists, find_schedule(name).place(pp_degree, per_rank))


def busy_of_equal_stages(lists: Sequence[ActionList], stage_to_rank: StageToRank) -> Fraction:
    """Compute-busy share of the least busy rank, replayed in the reference case.

    Raises:
        PlanError: the lists cannot run.
    """
    durations = {(stage, kind): 2 if kind is Kind.B else 1 for stage in range(len(stage_to_rank)) for kind in Kind}
    step = replay(lists, stage_to_rank, durations)
    return Fraction(min(step.busy)) / step.makespan


def bound_of_equal_stages(stage_to_rank: StageToRank, num_microbatches: int) -> Fraction:
    """Compute-busy share that no schedule of this placement exceeds in the reference case: the search's lower bound."""
    from hybrid_runtime.schedule.auto.problem import make_problem  # numpy: only where it is used

    kinds = (Kind.F, Kind.I, Kind.W)
    costs = StepCosts({(stage, kind): 1 for stage in range(len(stage_to_rank)) for kind in kinds})
    problem = make_problem(stage_to_rank, num_microbatches, costs, None)
    work = Fraction(3 * num_microbatches * len(stage_to_rank), max(stage_to_rank) + 1)
    return work / (problem.bound * problem.tick)


def least_microbatches(
    name: str, pp_degree: int, busy: Fraction, workload: str, virtual_stages: int | None = None
) -> int:
    """The fewest microbatches that the schedule accepts with which `ideal_busy` is at least `busy` (a share of 1).

    Raises:
        PlanError: unknown schedule, or a share that no number of microbatches reaches.
    """
    idle = find_schedule(name).forms[workload].idle(pp_degree, stages_per_rank(name, virtual_stages))
    if busy >= 1 and (idle or busy > 1):
        raise PlanError(
            f"a compute-busy share of {float(busy):.1%} cannot be reached by {name} on {pp_degree} pipeline ranks: "
            "each idles while the pipeline fills and drains; ask for less than 100 %"
        )
    enough = math.ceil(busy * idle / (1 - busy)) if idle else 1  # fewer idle longer, except that 1 may idle less
    return next(
        number
        for number in chain((1,), count(max(1, enough)))
        if _reaches(busy, name, pp_degree, number, workload, virtual_stages)
    )


def _reaches(
    busy: Fraction, name: str, pp_degree: int, num_microbatches: int, workload: str, virtual_stages: int | None
) -> bool:
    try:
        demand(name, pp_degree, num_microbatches, workload, virtual_stages)
    except PlanError:
        return False
    return ideal_busy(name, pp_degree, num_microbatches, workload, virtual_stages) >= busy
