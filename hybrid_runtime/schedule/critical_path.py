"""The critical path of a replayed step: the chain of actions of which every one delays the next and the last ends it.

rank 0 | F0 F1 .  .  B0 B0 .  B1 B1        0F0 1F0 1B0 1F1 1B1 0B1: shortening any of them shortens the step,
rank 1 | .  F0 B0 B0 F1 B1 B1 .  .         shortening 0F1 or 0B0 does not
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from hybrid_runtime.schedule.account import determined_by
from hybrid_runtime.schedule.replayed import Replay, Timed
from hybrid_runtime.schedule.rows import NOTHING
from hybrid_runtime.schedule.step_costs import Time


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """A longest chain; where several are equally long, the one that stays on its ranks.

    Attributes:
        actions: in order of time; messages stand as their SENDs (and RECVs, on blocking edges).
        by_kind: time on the path of "F", "I", "W", "B", "tensor_parallel" and "hop"; adds up to the makespan.
        by_rank: time on the path of every rank's compute and collectives.
    """

    actions: tuple[Timed, ...]
    by_kind: Mapping[str, Time]
    by_rank: Mapping[int, Time]


def critical_path(step: Replay) -> CriticalPath:
    """The path, from the action that ends last back to the start of the step."""
    indices = _indices(step)
    by_kind: dict[str, Time] = defaultdict(int)
    by_rank: dict[int, Time] = dict.fromkeys(range(step.rows.num_ranks), 0)
    for number, index in enumerate(indices):
        stage, kind, _ = step.rows.actions[index]
        time = step.time(step.ends[index] - step.starts[index])
        if kind.is_compute:
            compute = step.costs.compute(stage, kind)
            by_kind[kind.value] += compute
            by_kind["tensor_parallel"] += time - compute
            by_rank[step.rows.stage_to_rank[stage]] += time
        else:
            by_kind["hop"] += time
        if number > 0:
            by_kind["hop"] += step.time(step.starts[index] - step.ends[indices[number - 1]])
    timed = (Timed(step.rows.actions[i], step.time(step.starts[i]), step.time(step.ends[i])) for i in indices)
    return CriticalPath(tuple(timed), {kind: time for kind, time in by_kind.items() if time}, by_rank)


def _indices(step: Replay) -> list[int]:
    lasts = [row[-1] for row in map(step.rows.row, range(step.rows.num_ranks)) if row]
    indices = []
    index = max(lasts, key=lambda last: step.ends[last], default=NOTHING)
    while index != NOTHING:
        indices.append(index)
        index = determined_by(step, index)
    return indices[::-1]
