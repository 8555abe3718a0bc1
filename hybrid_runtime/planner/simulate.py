"""A plan's own action lists replayed with durations from its FLOPs: what `hybrid-runtime simulate` says. Modelled.

Free communication; tensor-parallel ranks share a stage's FLOPs equally. Without a rate the unit of time is one FLOP of
a rank, or one forward of a stage where the plan's FLOPs were never counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.given import checked_lists
from hybrid_runtime.planner.predict import durations_in_flops
from hybrid_runtime.schedule.account import RankTime, rank_times
from hybrid_runtime.schedule.critical_path import CriticalPath, critical_path
from hybrid_runtime.schedule.replay import Replay, replay
from hybrid_runtime.schedule.step_costs import StageKind, Time


@dataclass(frozen=True, slots=True)
class Simulated:
    """A replayed plan.

    Attributes:
        unit: of all times: "s", "FLOP" or "forward".
        peak_in_flight: per pipeline rank, most (stage, microbatch) pairs held at once.
    """

    plan: Plan
    unit: str
    step: Replay
    rank_times: tuple[RankTime, ...]
    critical_path: CriticalPath
    peak_in_flight: tuple[int, ...]


def simulate_plan(plan: Plan, source: str, flops_per_s: Fraction | None = None) -> Simulated:
    """Replays the plan that was read from `source`.

    Args:
        flops_per_s: what one rank does in a second; None for times in FLOPs.

    Raises:
        PlanError: the lists of the plan are wrong, they do not fit its stages, or a rate is given for a plan without
            FLOPs.
    """
    lists, checked = checked_lists(plan, source)
    durations, unit = _durations(plan, source, flops_per_s)
    step = replay(lists, plan.stage_to_rank, durations)
    return Simulated(plan, unit, step, rank_times(step), critical_path(step), checked.peak_in_flight)


def _durations(plan: Plan, source: str, flops_per_s: Fraction | None) -> tuple[dict[StageKind, Time], str]:
    recompute = [stage.recompute for stage in plan.stages]
    durations = durations_in_flops([stage.units for stage in plan.stages], plan.units, recompute)
    if not any(cost.forward_flops for cost in plan.units):
        if flops_per_s is not None:
            raise PlanError(
                f"{source}: its FLOPs were not counted, so a rate gives no seconds; leave --flops-per-s out"
            )
        return dict(durations), "forward"
    per_unit = plan.tp_degree * (flops_per_s or 1)
    return {key: Fraction(time) / per_unit for key, time in durations.items()}, "FLOP" if flops_per_s is None else "s"
