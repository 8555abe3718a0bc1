"""A serving deployment planned: the search's answer as a plan with its prediction, and what is said about it.

The prediction's step is one round of the load. Its forward passes are listed in the plan as those of any deployment
that only goes forward; which item passes when is decided while requests are served (serving/batcher.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hybrid_runtime.calibration import Calibration
from hybrid_runtime.deployment import Deployment, Parallel, Pipeline
from hybrid_runtime.errors import PlanError
from hybrid_runtime.exact import decimal_text, parse_gb_per_s
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.calibrated import CalibratedCosts
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.planner.request import model_of, rates_of, setting_of
from hybrid_runtime.planner.serving_calibrated import CalibratedServing
from hybrid_runtime.planner.serving_costs import AnalyticServing, ServingCosts
from hybrid_runtime.planner.serving_evaluate import Asked, EvaluatedServing, capacity_tokens
from hybrid_runtime.planner.serving_layout import ServingLayout
from hybrid_runtime.planner.serving_search import search_serving
from hybrid_runtime.planner.serving_words import cut_words, reasons, sentences, why_not
from hybrid_runtime.predicted import Alternative, PredictedRank, PredictedStep, RankTime
from hybrid_runtime.predicted_serving import PredictedServing, ServedRank, TradeOff
from hybrid_runtime.serving.latencies import LATENCIES
from hybrid_runtime.serving.load import traffic_of

_NS_PER_S = 10**9


@dataclass(frozen=True)
class PlannedServing:
    """What was chosen and what was not.

    Attributes:
        best: of every mesh its best layout, the chosen one first.
        sentences: what speaks for and against it, where figures come from.
        why_not: one line per mesh that was not chosen or cannot serve.
    """

    best: tuple[EvaluatedServing, ...]
    plan: Plan
    sentences: tuple[str, ...]
    why_not: tuple[str, ...]


def plan_serving(
    deployment: Deployment,
    calibration: Calibration | None,
    *,
    progress: Callable[[str, float], None] | None = None,
) -> PlannedServing:
    """Plans a serving deployment. Equal arguments give equal plans.

    Args:
        calibration: measured costs of this machine; None for formulas and declared rates.

    Raises:
        PlanError: nothing can be planned for; no layout is possible, fits, or keeps the limits: says what would help.
        UsageError: the load's prompts are unusable.
    """
    asked = asked_of_serving(deployment, calibration)
    found = search_serving(asked, progress)
    best = tuple(_best_of_meshes(found.evaluated))
    chosen = best[0]
    others = [
        Alternative(
            description=str(one.layout),
            step_time_ns=one.round_ns,
            peak_bytes=one.peak_bytes,
            why_not=why_not(one, chosen),
        )
        for one in best[1:]
    ]
    plan = serving_plan(chosen, found.evaluated, others)
    return PlannedServing(best, plan, tuple(sentences(chosen)), tuple(reasons(best, found)))


def asked_of_serving(deployment: Deployment, calibration: Calibration | None) -> Asked:
    """What is planned for.

    Raises:
        PlanError, UsageError: as `plan_serving`.
    """
    assert deployment.load is not None
    allowed = deployment.targets.latency_limits
    limits = tuple(
        (kind, name, int(limit * _NS_PER_S))
        for kind in LATENCIES
        if kind in allowed
        for name, limit in allowed[kind].given()
    )
    setting = setting_of(deployment)
    return Asked(
        deployment, setting, traffic_of(deployment), _costs(deployment, calibration), deployment.load.latency, limits
    )


def _costs(deployment: Deployment, calibration: Calibration | None) -> ServingCosts:
    assert deployment.model is not None
    shape, search = setting_of(deployment).shape, deployment.search
    if calibration is not None:
        if not calibration.served:
            raise PlanError(
                "the calibration was not taken with requests; calibrate this file again, or plan with --analytic"
            )
        network = model_of(deployment, calibration)
        assert isinstance(network, CalibratedCosts)
        return CalibratedServing(calibration, network, deployment.model.dtype)
    return AnalyticServing(
        shape,
        deployment.model.dtype,
        rates_of(deployment),
        int(parse_gb_per_s(search.memory_bandwidth) * 10**9),
        int(search.unit_us * 1000),
    )


def serving_plan(
    chosen: EvaluatedServing, evaluated: Sequence[EvaluatedServing], others: Sequence[Alternative] = ()
) -> Plan:
    """The plan of a layout."""
    follows = resolved_by(chosen.asked.deployment, chosen.layout)
    batch = follows.batch
    assert batch is not None
    costs = unit_costs(
        chosen.asked.setting.shape,
        microbatch_size=batch.microbatch_size,
        sequence_length=batch.sequence_length,
        workload="forward",
    )
    predicted = _predicted(chosen, evaluated).model_copy(update={"alternatives": tuple(others)})
    return make_plan(follows, costs).model_copy(update={"predicted": predicted})


def resolved_by(deployment: Deployment, layout: ServingLayout) -> Deployment:
    """The deployment that a layout makes of one."""
    assert deployment.batch is not None
    mesh = layout.mesh
    return deployment.model_copy(
        update={
            "parallel": Parallel(tp_degree=mesh.tp_degree, pp_degree=mesh.pp_degree),
            "pipeline": Pipeline(schedule="1f1b", cuts=cut_words(layout.stages)),
            "batch": deployment.batch.model_copy(
                update={
                    "microbatch_size": layout.microbatch_size,
                    "prefill_chunk_tokens": layout.chunk_tokens,
                    "items_in_flight": layout.items_in_flight,
                }
            ),
        }
    )


def _predicted(chosen: EvaluatedServing, evaluated: Sequence[EvaluatedServing]) -> PredictedStep:
    costs, served = chosen.asked.costs, chosen.served
    request, first = chosen.latency("request"), chosen.latency("first_token")
    assert request is not None
    assert first is not None
    return PredictedStep(
        step_time=costs.interval(chosen.round_ns),
        pipeline_ns=chosen.round_ns,
        bound_ns=max(rank.total_ns for rank in served.ranks),
        ranks=tuple(_rank(chosen, stage) for stage in range(len(served.ranks))),
        labels=dict(costs.labels),
        source=costs.source,
        fingerprint=dict(costs.fingerprint),
        serving=PredictedServing(
            latency=chosen.asked.latency,
            request=request,
            first_token=first,
            output_token=chosen.latency("output_token"),
            tokens=chosen.tokens,
            ranks=tuple(_served_rank(chosen, stage) for stage in range(len(served.ranks))),
            trade_offs=tuple(_trade_offs(chosen, evaluated)),
        ),
        asked=dict(chosen.asked.traffic.fingerprint),
    )


def _rank(chosen: EvaluatedServing, stage: int) -> PredictedRank:
    did = chosen.served.ranks[stage]
    left_ns = chosen.round_ns - (did.total_ns - did.overhead_ns)
    overhead_ns = min(did.overhead_ns, left_ns)  # what follows a rank's last item may outlast the round
    time = RankTime(
        forward_ns=did.prefill_ns + did.decode_ns,
        tensor_parallel_ns=did.tensor_parallel_ns,
        overhead_ns=overhead_ns,
        idle_ns=left_ns - overhead_ns,
    )
    return PredictedRank(pp_rank=stage, time=time, memory=chosen.memory[stage], flops=chosen.flops(stage))


def _served_rank(chosen: EvaluatedServing, stage: int) -> ServedRank:
    did = chosen.served.ranks[stage]
    return ServedRank(
        pp_rank=stage,
        prefill_ns=did.prefill_ns,
        decode_ns=did.decode_ns,
        kv_cache_bytes=chosen.memory[stage].kv_cache,
        capacity_tokens=capacity_tokens(chosen, stage),
    )


def _trade_offs(chosen: EvaluatedServing, evaluated: Sequence[EvaluatedServing]) -> Iterator[TradeOff]:
    """The plan, then what no other layout of the same mesh beats in both latency and throughput."""
    yield _trade_off(chosen)
    for mesh in dict.fromkeys(one.layout.mesh for one in evaluated):
        best_rate = None
        for one in sorted(
            (one for one in evaluated if one.layout.mesh == mesh),
            key=lambda one: (one.latency_ns, -one.tokens_per_s, str(one.layout)),
        ):
            if best_rate is None or one.tokens_per_s > best_rate:
                best_rate = one.tokens_per_s
                if one is not chosen:
                    yield _trade_off(one)


def _trade_off(one: EvaluatedServing) -> TradeOff:
    return TradeOff(
        tp_degree=one.layout.mesh.tp_degree,
        pp_degree=one.layout.mesh.pp_degree,
        microbatch_size=one.layout.microbatch_size,
        prefill_chunk_tokens=one.layout.chunk_tokens,
        latency_ns=one.latency_ns,
        tokens_per_s=decimal_text(one.tokens_per_s, 2),
    )


def _best_of_meshes(evaluated: Sequence[EvaluatedServing]) -> Iterator[EvaluatedServing]:
    seen = set()
    for one in evaluated:
        if one.layout.mesh not in seen:
            seen.add(one.layout.mesh)
            yield one
