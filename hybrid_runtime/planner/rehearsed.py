"""From a rehearsal to the costs of a replay, and to the prediction of a plan. No torch.

computed    rehearsed: medians of every (stage, kind), of the update and of what the executor adds
messages, collectives, and so the step's time    modelled: counted calls, and what a `Network` says of them
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.network import Network
from hybrid_runtime.predicted import Label, PredictedRank, PredictedStep, RankMemory, RankTime, TimeInterval
from hybrid_runtime.records import DATA, OPTIMIZER, REDUCE_GRAD
from hybrid_runtime.rehearsal import BETWEEN, Calls, Rehearsal, RehearsedRank
from hybrid_runtime.schedule.actions import Kind, parse_actions
from hybrid_runtime.schedule.messages import DirectedEdge
from hybrid_runtime.schedule.replay import Replay, replay_step
from hybrid_runtime.schedule.step_costs import Hop, StageKind, StepCosts

LABELS: dict[str, Label] = {
    "compute": "rehearsed",
    "memory": "rehearsed",
    "optimizer": "rehearsed",
    "overhead": "rehearsed",
    "tensor_parallel": "modelled",
    "messages": "modelled",
    "data_parallel": "modelled",
    "step_time": "modelled",
    "utilisation": "modelled",
}
_MESSAGES = ("send", "receive")


def action_times_ns(rehearsal: Rehearsal) -> dict[StageKind, tuple[int, ...]]:
    """By (stage, kind), every measured compute time."""
    found: dict[StageKind, list[int]] = defaultdict(list)
    for rank in rehearsal.ranks:
        for step in rank.steps:
            for key, times in step.actions_ns.items():
                found[_stage_kind(key)] += times
    return {key: tuple(times) for key, times in found.items()}


def rehearsed_costs(rehearsal: Rehearsal, plan: Plan, network: Network) -> StepCosts:
    """Costs with which `replay_step` replays the plan's lists, in whole nanoseconds.

    What the executor adds to an action occupies the rank and is not compute, so it counts with the collectives.
    """
    durations = {key: _median(times) for key, times in action_times_ns(rehearsal).items()}
    occupied: dict[StageKind, int] = {}
    for rank in rehearsal.ranks:
        overhead_ns = _overhead_ns(rank, network) // max(1, _actions(rank))
        for stage, kind in list(durations):
            if stage in rank.stages:
                called = rank.calls.get(f"{stage}{kind.value}", ())
                occupied[stage, kind] = overhead_ns + _called_ns(called, network)
                durations[stage, kind] += _computed_ns(called, network)
    return StepCosts(durations=durations, tensor_parallel=occupied, hops=_hops(rehearsal, plan, network))


def replayed(rehearsal: Rehearsal, plan: Plan, network: Network) -> Replay:
    """The plan's own lists with rehearsed durations."""
    lists = tuple(map(parse_actions, plan.actions))
    return replay_step(lists, plan.stage_to_rank, rehearsed_costs(rehearsal, plan, network))


def predicted_step(rehearsal: Rehearsal, plan: Plan, network: Network) -> PredictedStep:
    """The prediction of `plan`, from real kernels of its real stages.

    The interval has the relative width of the measured steps' compute on the rank that varies most.
    """
    step = replayed(rehearsal, plan, network)
    pipeline_ns = int(step.makespan)
    after_ns = max(_after_ns(rank, network) for rank in rehearsal.ranks)
    step_ns = pipeline_ns + after_ns
    low, high = _spread(rehearsal)
    return PredictedStep(
        step_time=TimeInterval(p10_ns=int(step_ns * low), p50_ns=step_ns, p90_ns=int(step_ns * high)),
        pipeline_ns=pipeline_ns,
        bound_ns=_bound_ns(plan, step.costs),
        ranks=tuple(
            PredictedRank(
                pp_rank=rank.pp_rank,
                time=_rank_time(rank, plan, network, step_ns),
                memory=_memory(rank),
                flops=rank.flops,
            )
            for rank in rehearsal.ranks
        ),
        labels=LABELS,
        source="rehearsal",
        fingerprint=rehearsal.fingerprint,
    )


def busy_ns(rank: RehearsedRank) -> int:
    """Compute of one step: what the verifier calls a device's compute, its median over the steps."""
    return _median([step.compute_ns for step in rank.steps])


def update_ns_per_million(rehearsal: Rehearsal) -> int:
    """Clearing, norm and update per million parameters, all ranks together."""
    spent = sum(_phase_ns(rank, OPTIMIZER) for rank in rehearsal.ranks)
    return spent * 10**6 // max(1, sum(rank.parameters for rank in rehearsal.ranks))


def _rank_time(rank: RehearsedRank, plan: Plan, network: Network, step_ns: int) -> RankTime:
    durations = {
        key: _median([time for step in rank.steps for time in step.actions_ns[key]])
        + _computed_ns(rank.calls.get(key, ()), network)
        for key in _keys(rank)
    }
    counts = {key: len(rank.steps[0].actions_ns[key]) for key in _keys(rank)}

    def total(*kinds: str) -> int:
        return sum(durations[key] * counts[key] for key in durations if key.lstrip("0123456789") in kinds)

    collectives_ns = sum(_called_ns(rank.calls.get(key, ()), network) * counts[key] for key in counts)
    overhead_ns = _overhead_ns(rank, network) // max(1, _actions(rank)) * _actions(rank) + _phase_ns(rank, DATA)
    known = RankTime(
        forward_ns=total("F", "EF"),
        backward_ns=total("B", "I", "EB"),
        weight_grad_ns=total("W"),
        tensor_parallel_ns=collectives_ns,
        data_parallel_ns=_phase_ns(rank, REDUCE_GRAD) + _called_ns(rank.calls.get(REDUCE_GRAD, ()), network),
        optimizer_ns=_phase_ns(rank, OPTIMIZER) + _called_ns(rank.calls.get(OPTIMIZER, ()), network),
        overhead_ns=overhead_ns,
    )
    return known.model_copy(update={"idle_ns": max(0, step_ns - known.total_ns)})


def _keys(rank: RehearsedRank) -> list[str]:
    return list(rank.steps[0].actions_ns)


def _actions(rank: RehearsedRank) -> int:
    return sum(map(len, rank.steps[0].actions_ns.values()))


def _overhead_ns(rank: RehearsedRank, network: Network) -> int:
    """The executor's own time in a step, and what the messages between its actions take from a rank with neighbours."""
    posted = sum(network.post_ns(call.num_bytes) * call.count for call in rank.calls.get(BETWEEN, ()))
    return _median([step.overhead_ns for step in rank.steps]) + posted


def _phase_ns(rank: RehearsedRank, phase: str) -> int:
    return _median([step.phases_ns.get(phase, 0) for step in rank.steps])


def _after_ns(rank: RehearsedRank, network: Network) -> int:
    """What a step holds beside its pipeline: reading the batch, summing gradients, the update."""
    phases = (DATA, REDUCE_GRAD, OPTIMIZER)
    return sum(_phase_ns(rank, phase) + _called_ns(rank.calls.get(phase, ()), network) for phase in phases)


def _called_ns(calls: Sequence[Calls], network: Network) -> int:
    return sum(
        network.collective_ns(call.kind, call.ranks, call.num_bytes) * call.count
        for call in calls
        if call.kind not in _MESSAGES
    )


def _computed_ns(calls: Sequence[Calls], network: Network) -> int:
    """What peers make a rank compute more than it did alone."""
    counted = (call for call in calls if call.kind not in _MESSAGES)
    return sum(network.compute_ns(call.kind, call.ranks, call.num_bytes) * call.count for call in counted)


def _hops(rehearsal: Rehearsal, plan: Plan, network: Network) -> Mapping[DirectedEdge, Hop]:
    """Every edge, with what the largest message that its source sends takes."""
    hops: dict[DirectedEdge, Hop] = {}
    for rank in rehearsal.ranks:
        sent = [call.num_bytes for calls in rank.calls.values() for call in calls if call.kind == "send"]
        if sent:
            latency = network.message_ns(max(sent))
            hops |= {(rank.pp_rank, other): Hop(latency=latency) for other in range(plan.pp_degree)}
    return hops


def _bound_ns(plan: Plan, costs: StepCosts) -> int:
    from hybrid_runtime.schedule.auto.problem import make_problem  # numpy: only where it is used

    if plan.workload != "train":
        return 0
    split = dict(costs.durations)
    for stage in range(len(plan.stages)):
        whole = costs.compute(stage, Kind.B) if (stage, Kind.I) not in split else None
        if whole is not None:  # a fused B hands its gradient on at its end
            split |= {(stage, Kind.I): whole, (stage, Kind.W): 0}
    problem = make_problem(plan.stage_to_rank, plan.num_microbatches, StepCosts(split), None)
    return int(problem.bound * problem.tick)


def _memory(rank: RehearsedRank) -> RankMemory:
    """Of the step that held most. Peaks of activations and buffers need not fall together: the ledger's sum counts."""
    most = max(rank.memory, key=lambda memory: memory.ledger_peak or 0)
    states = most.parameters + most.gradients + most.optimizer
    buffers = most.buffers_peak or 0
    return RankMemory(
        parameters=most.parameters,
        gradients=most.gradients,
        optimizer=most.optimizer,
        activations=max(0, (most.ledger_peak or 0) - states - buffers),
        buffers=buffers,
        allocated_peak=most.allocated_peak,
    )


def _spread(rehearsal: Rehearsal) -> tuple[float, float]:
    """p10 and p90 of a step's compute, relative to its median, on the rank that varies most."""
    ends = []
    for rank in rehearsal.ranks:
        times = sorted(step.compute_ns for step in rank.steps)
        middle = median(times)
        ends.append((times[len(times) // 10] / middle, times[-1 - len(times) // 10] / middle))
    return min(low for low, _ in ends), max(high for _, high in ends)


def _stage_kind(key: str) -> StageKind:
    kind = key.lstrip("0123456789")
    return int(key.removesuffix(kind)), Kind(kind)


def _median(times: Sequence[int]) -> int:
    return int(median(times))
