"""The portfolio: every schedule that is known before the search begins, replayed with the given costs.

Those are the registry's schedules with the searched placement, and the greedy orders for these costs and limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import ActionList
from hybrid_runtime.schedule.auto.greedy import greedy_orders
from hybrid_runtime.schedule.auto.problem import Problem, to_lists
from hybrid_runtime.schedule.registry import SCHEDULES, find_schedule, generate, stages_per_rank
from hybrid_runtime.schedule.replay import replay_step
from hybrid_runtime.schedule.step_costs import StepCosts, Time

GREEDY = "greedy"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A schedule and what its replay says.

    Attributes:
        name: of the registry, "greedy", or "annealed NAME".
        lists: compute lists, one per pipeline rank.
        makespan: in the unit of the costs.
        bubble: idle share of all ranks' time, 0 to 1.
        peak_bytes: most bytes held, per rank.
        fits: whether every rank stays within its limit.
    """

    name: str
    lists: tuple[ActionList, ...]
    makespan: Time
    bubble: Fraction
    peak_bytes: tuple[int, ...]
    fits: bool


def replayed(name: str, lists: Sequence[ActionList], problem: Problem, costs: StepCosts) -> Candidate:
    """A candidate of these lists."""
    step = replay_step(lists, problem.stage_to_rank, costs)
    peaks = tuple(peak.num_bytes for peak in step.peaks)
    fits = all(peak <= limit for peak, limit in zip(peaks, problem.limits.tolist()))
    return Candidate(name, tuple(lists), step.makespan, step.bubble, peaks, fits)


def known_schedules(problem: Problem, costs: StepCosts) -> list[Candidate]:
    """All schedules of the registry that have this placement and accept this number of microbatches."""
    num_ranks = len(problem.limits)
    per_rank = len(problem.stage_to_rank) // num_ranks
    found = []
    for name in SCHEDULES:
        try:
            stages_per_rank(name, per_rank)
            if find_schedule(name).place(num_ranks, per_rank) != problem.stage_to_rank:
                continue
            lists = generate(name, num_ranks, problem.num_microbatches, "train", per_rank)
        except PlanError:
            continue  # another number of stages per rank, or of microbatches
        found.append(replayed(name, lists, problem, costs))
    return found


def greedy_schedule(problem: Problem, costs: StepCosts) -> list[Candidate]:
    """The shortest of the greedy orders within the limits, if there is any."""
    found = [replayed(GREEDY, to_lists(order, problem), problem, costs) for order in greedy_orders(problem)]
    return [min(found, key=lambda candidate: candidate.makespan)] if found else []
