"""A plan cut anew by what its run measured: stages change their borders, everything else stays.

    records --measured_costs--> time of every stage --by FLOPs--> time of every unit (or piece) --> borders moved
                                                                                                    between them

The borders are moved one or two at a time by one unit, as long as the largest rank gets smaller (or, at the same size,
the ranks get more even): any placement, no unit divided, equal records give equal cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, combinations, pairwise, product

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.pieces import Piece, read_piece
from hybrid_runtime.plan import Plan, UnitCost
from hybrid_runtime.planner.costs import costs_of_names
from hybrid_runtime.planner.given import resolved
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.step_costs import StepCosts

Borders = tuple[int, ...]  # where stages begin among the items, the first (0) and the end included


def rebalanced(plan: Plan, deployment: Deployment, costs: StepCosts) -> tuple[Deployment, Plan]:
    """The deployment and plan with the borders that suit the measured costs; the same plan if they do already.

    Args:
        deployment: that the plan was made or resolved for.
        costs: of the run that followed the plan.

    Raises:
        PlanError: the cost of a stage is not known.
    """
    items = [name for stage in plan.stages for name in stage.units]
    times = [time for stage in plan.stages for time in _item_times(plan, stage.index, stage.units, costs)]
    before = tuple(accumulate((len(stage.units) for stage in plan.stages), initial=0))
    after = _moved(before, list(accumulate(times, initial=Fraction())), plan.stage_to_rank)
    if after == before:
        return deployment, plan
    stages = [_merged(items[start:end], plan.units) for start, end in pairwise(after)]
    cut = plan.model_copy(
        update={
            "stages": tuple(
                stage.model_copy(update={"units": units}) for stage, units in zip(plan.stages, stages, strict=True)
            )
        }
    )
    changed = resolved(deployment, cut, "the rebalanced plan")
    return changed, make_plan(changed, plan.units)


def _item_times(plan: Plan, stage: int, names: Sequence[str], costs: StepCosts) -> list[Fraction]:
    """Measured time of each unit or piece of a stage for one microbatch, shared out by FLOPs."""
    recompute = plan.stages[stage].recompute
    work = [cost.flops + cost.again_flops(recompute) for cost in costs_of_names(names, plan.units)]
    kinds = (Kind.F,) if plan.workload == "forward" else (Kind.F, Kind.B)
    measured = sum((Fraction(costs.compute(stage, kind)) for kind in kinds), Fraction())
    total = sum(work)
    return [measured * Fraction(flops, total) if total else measured / len(names) for flops in work]


def _moved(borders: Borders, upto: Sequence[Fraction], stage_to_rank: Sequence[int]) -> Borders:
    """The borders after the best moves, until none helps."""
    best, value = borders, _value(borders, upto, stage_to_rank)
    while True:
        tried = [(_value(one, upto, stage_to_rank), one) for one in _neighbours(best)]
        least = min(tried, default=(value, best))
        if least[0] >= value:
            return best
        value, best = least


def _value(borders: Borders, upto: Sequence[Fraction], stage_to_rank: Sequence[int]) -> tuple[Fraction, Fraction]:
    """The largest rank, then the sum of squares."""
    loads = [Fraction()] * (1 + max(stage_to_rank))
    for rank, (start, end) in zip(stage_to_rank, pairwise(borders), strict=True):
        loads[rank] += upto[end] - upto[start]
    return max(loads), sum((load * load for load in loads), Fraction())


def _neighbours(borders: Borders) -> Iterator[Borders]:
    """One or two inner borders moved by one item; no stage becomes empty."""
    inner = range(1, len(borders) - 1)
    for places in (*((place,) for place in inner), *combinations(inner, 2)):
        for steps in product((-1, 1), repeat=len(places)):
            moved = list(borders)
            for place, step in zip(places, steps, strict=True):
                moved[place] += step
            if all(a < b for a, b in pairwise(moved)):
                yield tuple(moved)


def _merged(names: Sequence[str], units: Sequence[UnitCost]) -> tuple[str, ...]:
    """Neighbouring pieces of one unit as one piece, or as the whole unit."""
    parts = {cost.name: cost.parts for cost in units}
    merged: list[str] = []
    for name in names:
        piece, last = read_piece(name), read_piece(merged[-1]) if merged else None
        if piece and last and (piece.unit, piece.start) == (last.unit, last.stop):
            both = Piece(piece.unit, last.start, piece.stop)
            whole = both.start == 0 and both.stop == parts[both.unit]
            merged[-1] = both.unit if whole else str(both)
        else:
            merged.append(name)
    return tuple(merged)
