"""What schedules do for given costs: replayed steps and the figures that `schedule compare` and `show` print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from hybrid_runtime.errors import PlanError
from hybrid_runtime.report.schedule_grid import Figures
from hybrid_runtime.schedule.actions import CellList, Kind
from hybrid_runtime.schedule.choose import is_file, is_searched, lowered_lists, place
from hybrid_runtime.schedule.files import read_lists
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.placement import StageToRank, v_shape
from hybrid_runtime.schedule.registry import SCHEDULES, generate_cells
from hybrid_runtime.schedule.replay import Replay, replay_step
from hybrid_runtime.schedule.step_costs import Hop, StepCosts, activation_bytes

MAX_ACTIONS = 500_000  # replayed in a few seconds


@dataclass(frozen=True, slots=True)
class Case:
    """Degrees and costs; times of one microbatch through all stages of one rank, in any unit."""

    pp_degree: int
    num_microbatches: int
    forward: Fraction = Fraction(1)
    input_grad: Fraction = Fraction(1)
    weight_grad: Fraction = Fraction(1)
    hop: Fraction = Fraction(0)

    def costs(self, stage_to_rank: StageToRank) -> StepCosts:
        """Costs of equal stages; an activation of one (stage, microbatch) counts as 1 byte."""
        per_rank = Fraction(len(stage_to_rank), self.pp_degree)
        shares = {Kind.F: self.forward, Kind.I: self.input_grad, Kind.W: self.weight_grad}
        return StepCosts(
            {(stage, kind): share / per_rank for stage in range(len(stage_to_rank)) for kind, share in shares.items()},
            hop=Hop(self.hop),
            action_bytes=activation_bytes([1] * len(stage_to_rank)),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One schedule of a comparison.

    Attributes:
        step: None where the schedule does not accept the case; `problem` then says why.
        bound_bubble: of a searched schedule, the bubble that no order of its placement goes below.
    """

    name: str
    step: Replay | None
    problem: str = ""
    bound_bubble: Fraction | None = None


def replayed(name: str, case: Case, virtual_stages: int | None = None) -> Replay:
    """The step of a schedule of that name, or of a file of action lists.

    Raises:
        PlanError: unknown, wrong, or it does not accept the case.
    """
    stage_to_rank = place(name, case.pp_degree, virtual_stages)
    _demand_size(case, stage_to_rank)
    lists = lowered_lists(name, case.pp_degree, case.num_microbatches, "train", virtual_stages)
    return replay_step(lists, stage_to_rank, case.costs(stage_to_rank))


def searched(
    case: Case,
    limit: int,
    seed: int,
    budget_s: float,
    virtual_stages: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Row:
    """The shortest step found in which a rank holds at most `limit` microbatches of its whole share.

    Args:
        on_progress: is told what part of the search is done, 0 to 1.

    Raises:
        PlanError: no schedule holds so few.
    """
    from hybrid_runtime.schedule.auto.search import search

    stage_to_rank = v_shape(case.pp_degree, virtual_stages or 2)
    _demand_size(case, stage_to_rank)
    costs, per_rank = case.costs(stage_to_rank), len(stage_to_rank) // case.pp_degree
    found = search(
        case.pp_degree,
        case.num_microbatches,
        costs,
        limit * per_rank,
        seed,
        budget_s,
        None if on_progress is None else lambda progress: on_progress(progress.done),
        stage_to_rank=stage_to_rank,
    )
    name = f"auto ({found.best.name})" if found.complete else f"auto ({found.best.name}, out of time)"
    return Row(name, replay_step(lower(found.lists, stage_to_rank), stage_to_rank, costs), "", found.bound_bubble)


def cells_of(name: str, step: Replay, virtual_stages: int | None = None) -> tuple[CellList, ...]:
    """What a file of this schedule holds: a file's own cells, a generator's with its overlaps, or what was searched.

    Args:
        step: the schedule's, replayed.
    """
    if is_searched(name):
        return tuple(tuple(timed.action for timed in row) for row in step.ranks)
    if is_file(name):
        return read_lists(Path(name)).cells
    num_microbatches = 1 + max(action.microbatch for action in step.rows.actions)
    return generate_cells(name, step.rows.num_ranks, num_microbatches, "train", virtual_stages)


def compare_all(case: Case) -> list[Row]:
    """All schedules of the registry in their own placements."""
    return [_row(name, case) for name in SCHEDULES]


def figures(step: Replay) -> Figures:
    """Makespan, bubble, and microbatches of a rank's whole share held at once."""
    stage_to_rank = list(step.rows.stage_to_rank)
    peaks = (Fraction(peak.num_bytes, stage_to_rank.count(rank)) for rank, peak in enumerate(step.peaks))
    return Figures(Fraction(step.makespan), step.bubble, tuple(peaks))


def num_messages(step: Replay) -> int:
    """Messages between ranks in one step: each is one activation, or its gradient, of one microbatch."""
    return sum(action.kind.is_send for action in step.rows.actions)


def _row(name: str, case: Case) -> Row:
    try:
        return Row(name, replayed(name, case))
    except PlanError as problem:
        return Row(name, None, str(problem))


def _demand_size(case: Case, stage_to_rank: StageToRank) -> None:
    actions = 3 * len(stage_to_rank) * case.num_microbatches
    if actions > MAX_ACTIONS:
        raise PlanError(
            f"{case.pp_degree} pipeline ranks and {case.num_microbatches} microbatches make {actions} actions, more "
            f"than {MAX_ACTIONS}: give fewer microbatches"
        )
