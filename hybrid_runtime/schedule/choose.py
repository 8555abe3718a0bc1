"""What `pipeline.schedule` means: the name of a generator, a .csv file of action lists, or "auto".

The first two give lists here; those of "auto" are searched for a plan's own costs (`planner.searched`).
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import ActionList
from hybrid_runtime.schedule.files import ListFile, check_file, in_file, read_lists
from hybrid_runtime.schedule.ideal import bound_of_equal_stages, busy_of_equal_stages, ideal_busy
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.placement import v_shape
from hybrid_runtime.schedule.registry import demand, find_schedule, generate, stages_per_rank

AUTO = "auto"


def is_file(schedule: str) -> bool:
    """Whether a schedule is a file and not a name."""
    return schedule.lower().endswith(".csv")


def is_searched(schedule: str) -> bool:
    """Whether the lists are searched when a plan is made."""
    return schedule == AUTO


def place(schedule: str, pp_degree: int, virtual_stages: int | None = None) -> tuple[int, ...]:
    """The pipeline rank of every stage.

    Args:
        virtual_stages: stages per rank; None for the schedule's own number.

    Raises:
        PlanError: unknown schedule, unreadable file, or one that does not have so many ranks or stages.
    """
    if is_searched(schedule):
        return v_shape(pp_degree, virtual_stages or 2)
    if not is_file(schedule):
        return find_schedule(schedule).place(pp_degree, stages_per_rank(schedule, virtual_stages))
    return _file(schedule, pp_degree, virtual_stages).stage_to_rank


def accept(schedule: str, pp_degree: int, num_microbatches: int, workload: str, virtual_stages: int | None) -> None:
    """Whether the schedule takes so many microbatches, without making its lists.

    Raises:
        PlanError: it does not; names the numbers that it takes.
    """
    if is_searched(schedule):
        if workload != "train":
            raise PlanError(f'pipeline.schedule = "auto" searches training steps, not {workload!r}; name a schedule')
        return
    if not is_file(schedule):
        demand(schedule, pp_degree, num_microbatches, workload, virtual_stages)
        return
    found = _file(schedule, pp_degree, virtual_stages)
    if found.num_microbatches != num_microbatches:
        raise PlanError(
            f"{schedule}: is made for {found.num_microbatches} microbatches, but the batch makes {num_microbatches}: "
            f"change global_batch_size or microbatch_size so that it makes {found.num_microbatches}"
        )
    if found.workload != workload:
        raise PlanError(f"{schedule}: is a schedule for workload {found.workload!r}, not {workload!r}")


def lowered_lists(
    schedule: str, pp_degree: int, num_microbatches: int, workload: str, virtual_stages: int | None = None
) -> tuple[ActionList, ...]:
    """The lists that ranks execute; the SENDs and RECVs of a file that has them are kept as they are.

    Raises:
        PlanError: as `accept`, or the first thing that is wrong in a file.
    """
    accept(schedule, pp_degree, num_microbatches, workload, virtual_stages)
    assert not is_searched(schedule), "a search needs costs: see planner.searched"
    stage_to_rank = place(schedule, pp_degree, virtual_stages)
    if not is_file(schedule):
        return lower(generate(schedule, pp_degree, num_microbatches, workload, virtual_stages), stage_to_rank)
    findings = check_file(Path(schedule)).findings
    if findings:
        raise PlanError(f"{schedule}: {in_file(findings[0])}")
    found = read_lists(Path(schedule))
    return found.lists if found.has_messages else lower(found.lists, stage_to_rank)


def busy_at_best(
    schedule: str, pp_degree: int, num_microbatches: int, workload: str, virtual_stages: int | None = None
) -> Fraction:
    """`ideal_busy`, of the least busy rank of a file; for "auto" what no schedule of its placement exceeds.

    Raises:
        PlanError: as `lowered_lists`.
    """
    if is_searched(schedule):
        accept(schedule, pp_degree, num_microbatches, workload, virtual_stages)
        return bound_of_equal_stages(place(schedule, pp_degree, virtual_stages), num_microbatches)
    if not is_file(schedule):
        return ideal_busy(schedule, pp_degree, num_microbatches, workload, virtual_stages)
    lists = lowered_lists(schedule, pp_degree, num_microbatches, workload, virtual_stages)
    return busy_of_equal_stages(lists, place(schedule, pp_degree, virtual_stages))


def _file(schedule: str, pp_degree: int, virtual_stages: int | None) -> ListFile:
    found = read_lists(Path(schedule))
    if len(found.lists) != pp_degree:
        raise PlanError(f"{schedule}: has {len(found.lists)} rows, but pp_degree = {pp_degree} needs one per rank")
    held = {found.stage_to_rank.count(rank) for rank in range(pp_degree)}
    if virtual_stages is not None and held != {virtual_stages}:
        shown = " or ".join(map(str, sorted(held)))
        raise PlanError(
            f"pipeline.virtual_stages = {virtual_stages}: {schedule} has {shown} stages on a rank; "
            "leave virtual_stages out"
        )
    return found
