"""The automatic scheduler: the shortest step that these costs and byte limits allow, and how far that is from a bound.

    known schedules --+                +-- anneal --+
                      +-- best two ----+            +-- shortest -- even out peaks -- replay -- result
    greedy orders ----+                +-- anneal --+

An order that only the costs at hand justify: run it where costs were measured, and measure it before recommending it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import ActionList, Kind
from hybrid_runtime.schedule.auto.anneal import Chain, shorten_all
from hybrid_runtime.schedule.auto.problem import KEPT, NONE, Ints, Problem, make_problem, to_lists, to_order
from hybrid_runtime.schedule.auto.starts import GREEDY, Candidate, greedy_schedule, known_schedules, replayed
from hybrid_runtime.schedule.placement import StageToRank, v_shape
from hybrid_runtime.schedule.step_costs import StepCosts, Time


class Progress(NamedTuple):
    """How far a search is.

    Attributes:
        done: part of the tries, 0 to 1; the bound may be reached before.
        bubble, bound_bubble: of the best order so far and of the lower bound, 0 to 1.
    """

    done: float
    bubble: float
    bound_bubble: float


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What was found.

    Attributes:
        stage_to_rank: the placement.
        best: the shortest schedule within the limits.
        bound: no schedule of this placement with one backward per forward ends earlier; in the unit of the costs.
        bound_bubble: the bubble of a step that long.
        portfolio: all schedules looked at before annealing, shortest first, also those over a limit.
        complete: False if the time budget ended the search; only complete results are the same for the same seed.
    """

    stage_to_rank: tuple[int, ...]
    best: Candidate
    bound: Time
    bound_bubble: Fraction
    portfolio: tuple[Candidate, ...]
    complete: bool

    @property
    def lists(self) -> tuple[ActionList, ...]:
        """Compute lists of the best schedule, one per pipeline rank."""
        return self.best.lists


def search(
    pp_degree: int,
    num_microbatches: int,
    costs: StepCosts,
    limit: int | Sequence[int] | None = None,
    seed: int = 0,
    budget_s: float = 60.0,
    progress: Callable[[Progress], None] | None = None,
    *,
    stage_to_rank: StageToRank | None = None,
    most_tries: int | None = None,
) -> SearchResult:
    """Searches for the shortest step.

    Args:
        costs: of every stage of the placement.
        limit: bytes that the actions of a rank may hold at once, for all ranks or for each; None for no limit.
        seed: equal seeds give equal results, as long as the budget lasts.
        budget_s: seconds of annealing; compiling, once per machine, comes on top.
        progress: is called some 20 times a second.
        stage_to_rank: any placement; by default V with two stages per rank.
        most_tries: of each chain in a round, instead of a number that grows with the actions. With it and
            budget_s = inf the result does not depend on the speed of the machine.

    Raises:
        PlanError: no known schedule fits the limit, a duration is missing, there is nothing to schedule, or a rank has
            no stage.
    """
    if pp_degree < 1 or num_microbatches < 1:
        raise PlanError(f"a search needs at least 1 rank and 1 microbatch, not {pp_degree} and {num_microbatches}")
    placement = tuple(stage_to_rank or v_shape(pp_degree))
    if sorted(set(placement)) != list(range(pp_degree)):
        raise PlanError(f"the placement {placement} does not give every one of {pp_degree} pipeline ranks a stage")
    limits = [limit] * pp_degree if isinstance(limit, int) else limit
    problem = make_problem(placement, num_microbatches, costs, limits)
    portfolio = known_schedules(problem, costs) + greedy_schedule(problem, costs)
    portfolio.sort(key=lambda candidate: candidate.makespan)
    starts = _starts(portfolio, problem, costs)
    chains = [Chain(problem, order, 2 * seed + number) for number, (_, order) in enumerate(starts)]
    for chain in chains:
        chain.tries_per_round = min(chain.tries_per_round, most_tries or chain.tries_per_round)
    chains[0].compile()
    watch = _Watch(_least_busy(problem, costs), budget_s, problem, progress)
    finished = watch.over(shorten_all(chains, problem.bound), chains, 0.0, 0.9)
    shortest = min(range(len(chains)), key=lambda number: chains[number].makespan)
    chain = chains[shortest]
    finished = finished and watch.over(chain.even_out(), [chain], 0.9, 1.0)
    annealed = replayed(f"annealed {starts[shortest][0]}", to_lists(chain.best, problem), problem, costs)
    fitting = [*(start for start in portfolio if start.fits), annealed]
    best = min(fitting, key=lambda candidate: (candidate.makespan, max(candidate.peak_bytes)))
    return SearchResult(
        placement,
        best,
        problem.bound * problem.tick,
        watch.bubble(problem.bound),
        tuple(portfolio),
        finished,
    )


def _starts(portfolio: Sequence[Candidate], problem: Problem, costs: StepCosts) -> list[tuple[str, Ints]]:
    """What to anneal, by name: the shortest known schedule that fits, its backwards split, and the greedy one."""
    usable = []
    for name, lists in ((candidate.name, candidate.lists) for candidate in portfolio if candidate.fits):
        order = to_order(lists, problem)
        if order is not None and replayed(name, to_lists(order, problem), problem, costs).fits:
            usable.append((name, order))
    greedy = [start for start in usable if start[0] == GREEDY]
    starts = [start for start in usable if start[0] != GREEDY][: 2 - len(greedy)] + greedy
    if not starts:
        alone = [int(problem.tables[row[row != NONE], KEPT].sum()) for row in problem.streams_of]
        raise PlanError(
            f"no schedule fits {problem.limits.tolist()} bytes per pipeline rank, one microbatch alone keeps {alone}: "
            "raise the limit, use smaller microbatches or recompute activations"
        )
    return starts


def _least_busy(problem: Problem, costs: StepCosts) -> Time:
    """Compute time of all ranks, with the shorter of a whole and a split backward."""
    per_microbatch = sum(
        costs.compute(k, Kind.F) + min(costs.compute(k, Kind.B), costs.compute(k, Kind.I) + costs.compute(k, Kind.W))
        for k in range(len(problem.stage_to_rank))
    )
    return problem.num_microbatches * per_microbatch


class _Watch:
    """Looks at the clock between slices, and tells whoever wants to know."""

    def __init__(self, busy: Time, budget_s: float, problem: Problem, progress: Callable[[Progress], None] | None):
        self._busy = busy
        self._problem = problem
        self._progress = progress
        self._end_s = time.monotonic() + budget_s

    def bubble(self, makespan_ticks: int) -> Fraction:
        """The bubble of a step of this length."""
        whole = len(self._problem.limits) * makespan_ticks * self._problem.tick
        return 1 - self._busy / whole if whole else Fraction(0)

    def over(self, slices: Iterator[float], chains: Sequence[Chain], first: float, last: float) -> bool:
        """Goes through slices, which take the progress from `first` to `last`; False if time ran out on the way."""
        bound_bubble = float(self.bubble(self._problem.bound))
        for done in slices:
            if self._progress is not None:
                shortest = min(chain.makespan for chain in chains)
                self._progress(Progress(first + done * (last - first), float(self.bubble(shortest)), bound_bubble))
            if time.monotonic() > self._end_s:
                return next(slices, None) is None
        return True
