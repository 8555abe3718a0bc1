"""Whether the disk of the run folder holds what the ranks will write, asked before the first step.

A line of records has some 60 bytes per action and 45 per wait for other ranks. A disk without room for the first
hundred steps is refused; one that will be full before the last step is only spoken of, for somebody may clear it.
"""

from __future__ import annotations

import shutil

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.plan import Plan
from hybrid_runtime.report.cells import bytes_text
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.schedule.actions import parse_actions

_LINE_BYTES, _SPAN_BYTES, _WAIT_BYTES = 700, 60, 45
_PROGRESS_BYTES = 250  # a line of progress.jsonl, and per rank of it
_AT_LEAST_STEPS = 100


def records_bytes_per_step(plan: Plan) -> int:
    """About what all ranks write into the run folder in one traced step."""
    total = _PROGRESS_BYTES * (1 + plan.mesh.world_size)
    for pp_rank, row in enumerate(plan.actions):
        units = sum(len(stage.units) for stage in plan.stages_of(pp_rank)) / len(plan.stages_of(pp_rank))
        actions = parse_actions(row)
        computed = sum(action.kind.is_compute for action in actions)
        waits = sum(action.kind.is_receive for action in actions) + (plan.tp_degree > 1) * computed * units
        line = _LINE_BYTES + _SPAN_BYTES * computed + _WAIT_BYTES * int(waits)
        total += line * plan.tp_degree * plan.dp_degree
    return total


def refuse_too_full(folder: RunFolder, plan: Plan, steps: int) -> str | None:
    """Every rank asks this before the ranks join.

    Returns:
        A warning where the disk will be full before the last step; None where it has room for all.

    Raises:
        EnvironmentProblem: not even the first steps fit.
    """
    per_step, free = records_bytes_per_step(plan), shutil.disk_usage(folder.path).free
    words = f"{folder.path}: {bytes_text(free)} are free on this disk, and the records of"
    fix = "free space, or name a --run-folder on another disk"
    if free < per_step * min(steps, _AT_LEAST_STEPS):
        needed = bytes_text(per_step * min(steps, _AT_LEAST_STEPS))
        raise EnvironmentProblem(f"{words} {min(steps, _AT_LEAST_STEPS)} steps take about {needed}; {fix}")
    if free < per_step * steps:
        return f"{words} {steps} steps take about {bytes_text(per_step * steps)}: it will be full before the end; {fix}"
    return None
