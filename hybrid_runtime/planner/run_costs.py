"""A whole step from the records of a run: what its actions, gaps and phases cost, and the step replayed with that.

    | DATA | 0F0 gap 0F1 gap ~ 0B0 ... | REDUCE_GRAD | OPTIMIZER |
             \\______ replayed _______/   \\_ the longest rank's _/

On the clock "thread_cpu", of ranks that share cores, actions cost what the rank's own thread worked. What they wait for
each other cannot be seen there: a wait counts with the least that any such action was held up, and a message with the
least that it took. Both are lower bounds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median
from typing import Literal

from hybrid_runtime.planner.measured_costs import measured_costs
from hybrid_runtime.predicted import RankTime
from hybrid_runtime.records import DATA, OPTIMIZER, PHASES, REDUCE_GRAD, TRACE, RankRecords, StepRecord
from hybrid_runtime.schedule.actions import ActionList, Kind
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.replay import replay_step
from hybrid_runtime.schedule.step_costs import StageKind, StepCosts, Time

Clock = Literal["wall", "thread_cpu"]


@dataclass(frozen=True, slots=True)
class RunCosts:
    """What a step costs, in whole nanoseconds.

    Attributes:
        step: of actions and messages.
        gap_ns: what the executor takes between two actions.
        phases_ns: per pipeline rank, by phase name (DATA, REDUCE_GRAD, OPTIMIZER), one step's.
    """

    step: StepCosts
    gap_ns: int
    phases_ns: tuple[Mapping[str, int], ...]


@dataclass(frozen=True, slots=True)
class WholeStep:
    """A replayed step with what precedes and follows the pipeline; every rank's parts add up to `step_ns`."""

    step_ns: int
    ranks: tuple[RankTime, ...]

    @property
    def utilisation(self) -> Fraction:
        """Compute-busy share of the least busy rank."""
        return min(Fraction(rank.compute_ns + rank.optimizer_ns, self.step_ns) for rank in self.ranks)


def recorded(ranks: Sequence[RankRecords]) -> list[RankRecords]:
    """A side with the steps that show what actions cost as its measured ones.

    Those are its measured steps with spans; of a side whose measured steps are all bare, as a baseline's are, the
    second half of its warm-up, without the steps that the byte ledger watched.
    """
    if any(True for _ in ranks[0].measured()):
        return list(ranks)
    return [rank._replace(steps=tuple(_settled(rank))) for rank in ranks]


def _settled(rank: RankRecords) -> Iterator[StepRecord]:
    warm = [step for step in rank.steps if step.phase == "warmup" and step.purpose == TRACE and not step.ledger]
    return (step.model_copy(update={"phase": "measure"}) for step in warm[len(warm) // 2 :])


def run_costs(ranks: Sequence[RankRecords], clock: Clock, purpose: str = TRACE) -> RunCosts:
    """The costs of a side's measured steps with spans (`recorded`).

    Raises:
        RecordsError: as `measured_costs`.
    """
    pp_degree = 1 + max(rank.header.pp for rank in ranks)
    peers = [[rank for rank in ranks if rank.header.pp == pp] for pp in range(pp_degree)]
    steps = [[step for rank in row for step in rank.measured(purpose)] for row in peers]
    reduce_ns = _reduce_ns(ranks, purpose) if clock == "wall" else 0
    gaps = [gap for row in steps for step in row for gap in _gaps_ns(step)]
    return RunCosts(
        step=measured_costs(ranks, purpose, clock),
        gap_ns=int(median(gaps)) if gaps else 0,
        phases_ns=tuple(_phases_ns(row, clock, reduce_ns) for row in steps),
    )


def whole_step(lists: Sequence[ActionList], stage_to_rank: StageToRank, costs: RunCosts) -> WholeStep:
    """Replays a step: reading data, the pipeline, then the longest of the ranks' phases behind it.

    Raises:
        PlanError: a list can never run, or the cost of one of its actions is not known.
    """
    held_up: dict[StageKind, Time] = {}
    for stage in range(len(stage_to_rank)):
        for kind in (kind for kind in Kind if kind.is_compute):
            held_up[stage, kind] = costs.step.collectives(stage, kind) + costs.gap_ns
    replay = replay_step(lists, stage_to_rank, _with_collectives(costs.step, held_up))
    before_ns = max(phases.get(DATA, 0) for phases in costs.phases_ns)
    after_ns = max(phases.get(REDUCE_GRAD, 0) + phases.get(OPTIMIZER, 0) for phases in costs.phases_ns)
    step_ns = before_ns + int(replay.makespan) + after_ns
    ranks = (_rank_time(actions, costs, pp, step_ns) for pp, actions in enumerate(lists))
    return WholeStep(step_ns, tuple(ranks))


def _with_collectives(step: StepCosts, held_up: Mapping[StageKind, Time]) -> StepCosts:
    return StepCosts(step.durations, held_up, step.hop, step.hops, step.message_bytes, step.action_bytes)


def _rank_time(actions: ActionList, costs: RunCosts, pp: int, step_ns: int) -> RankTime:
    parts: dict[str, int] = defaultdict(int)
    for action in actions:
        if action.kind.is_compute:
            parts[_component(action.kind)] += int(costs.step.compute(action.stage, action.kind))
            parts["tensor_parallel_ns"] += int(costs.step.collectives(action.stage, action.kind))
            parts["overhead_ns"] += costs.gap_ns
    phases = costs.phases_ns[pp]
    parts["overhead_ns"] += phases.get(DATA, 0)
    parts["data_parallel_ns"] = phases.get(REDUCE_GRAD, 0)
    parts["optimizer_ns"] = phases.get(OPTIMIZER, 0)
    return RankTime(**parts, idle_ns=step_ns - sum(parts.values()))


def _component(kind: Kind) -> str:
    if kind is Kind.W:
        return "weight_grad_ns"
    return "forward_ns" if kind.value.endswith("F") else "backward_ns"


def _gaps_ns(step: StepRecord) -> list[int]:
    """Between neighbouring actions, where nobody was waited for."""
    actions = [span for span in step.spans if span.name not in PHASES]
    waits = sorted(wait.start_ns for wait in step.waits)
    between = ((before.end_ns, after.start_ns) for before, after in pairwise(actions))
    return [end - start for start, end in between if bisect_left(waits, start) == bisect_left(waits, end)]


def _phases_ns(steps: Sequence[StepRecord], clock: Clock, reduce_ns: int) -> dict[str, int]:
    """Per phase, the median over steps of its spans without waits."""
    found: dict[str, list[int]] = {name: [] for name in PHASES}
    for step in steps:
        sums = dict.fromkeys(PHASES, 0)
        for span in step.spans:
            if span.name in PHASES:
                wall_ns = span.end_ns - span.start_ns - span.wait_ns
                sums[span.name] += wall_ns if clock == "wall" else max(0, span.cpu_ns)
        for name, time_ns in sums.items():
            found[name].append(time_ns)
    own = {name: int(median(times)) for name, times in found.items() if times}
    return own | ({REDUCE_GRAD: reduce_ns} if clock == "wall" else {})


def _reduce_ns(ranks: Sequence[RankRecords], purpose: str) -> int:
    """Summing gradients, wall clock: the median over steps of what the rank that comes last takes; others wait too."""
    shortest: list[int] = []
    for row in zip(*(rank.measured(purpose) for rank in ranks), strict=True):
        taken = [sum(span.end_ns - span.start_ns for span in step.spans if span.name == REDUCE_GRAD) for step in row]
        shortest.append(min(taken))
    return int(median(shortest)) if shortest else 0
