"""A serving layout simulated with the deployment's own load: latencies, tokens per second, bytes of every rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.planner.layout import Setting, crosses_nodes
from hybrid_runtime.planner.serving_costs import ServingCosts
from hybrid_runtime.planner.serving_layout import ServingLayout
from hybrid_runtime.planner.serving_stages import ServedStages
from hybrid_runtime.predicted import RankMemory
from hybrid_runtime.predicted_serving import LatencyKind, LatencyTimes
from hybrid_runtime.serving.batcher import Batcher
from hybrid_runtime.serving.latencies import latency_times
from hybrid_runtime.serving.load import Traffic
from hybrid_runtime.serving.refusals import limits_of
from hybrid_runtime.serving.simulate import Served, mean_of, simulate

_NS_PER_S = 10**9
_ENOUGH_REQUESTS = 160  # for quantiles of latencies


@dataclass(frozen=True)
class Asked:
    """What a serving deployment is planned for: everything that no layout changes.

    Attributes:
        latency: what is waited for, by which the layouts are compared.
        limits: (latency, quantile, most nanoseconds) that the targets promise.
    """

    deployment: Deployment
    setting: Setting
    traffic: Traffic
    costs: ServingCosts
    latency: LatencyKind
    limits: tuple[tuple[LatencyKind, str, int], ...]

    @property
    def slots(self) -> int:
        """Sequences that are served at once."""
        return self.setting.global_batch_size

    @cached_property
    def dtype(self) -> str:
        assert self.deployment.model is not None
        return self.deployment.model.dtype


@dataclass(frozen=True)
class EvaluatedServing:
    """A layout with what became of it.

    Attributes:
        rounds: simulated ones.
    """

    asked: Asked
    layout: ServingLayout
    stages: ServedStages
    rounds: tuple[Served, ...]
    memory: tuple[RankMemory, ...]

    @cached_property
    def served(self) -> Served:
        """A round on average, with the answers of all."""
        return mean_of(self.rounds)

    def latency(self, kind: LatencyKind) -> LatencyTimes | None:
        """Quantiles over the round's requests; None where no request has this latency."""
        return latency_times(self.served.answers, kind)

    @cached_property
    def latency_ns(self) -> int:
        """Median of the latency that layouts are compared by."""
        found = self.latency(self.asked.latency)
        return 0 if found is None else found.median_ns

    @cached_property
    def tokens(self) -> int:
        """That a round makes; of a prefill workload, tokens of prompts that it reads."""
        if self.asked.deployment.workload.kind == "generate":
            return sum(len(answer.tokens) for answer in self.rounds[0].answers)
        return self.asked.traffic.prompt_tokens

    @property
    def round_ns(self) -> int:
        return max(1, self.served.round_ns)

    @property
    def tokens_per_s(self) -> Fraction:
        return Fraction(self.tokens * _NS_PER_S, self.round_ns)

    def flops(self, stage: int) -> int:
        """Of a round, all tensor-parallel ranks of the stage together."""
        return int(self.stages.flops(stage) / len(self.rounds))

    @property
    def peak_bytes(self) -> int:
        return max(memory.ledger_peak for memory in self.memory)

    def broken_limits(self) -> Iterator[str]:
        """Latencies above what the targets allow."""
        for kind, name, limit_ns in self.asked.limits:
            found = self.latency(kind)
            took_ns = 0 if found is None else getattr(found, f"{name}_ns")
            if took_ns > limit_ns:
                words = kind.replace("_", " ")
                yield f"{name} of {words} latency {took_ns / 1e9:.4g} s, limit {limit_ns / 1e9:g} s"


def evaluate_serving(asked: Asked, layout: ServingLayout) -> EvaluatedServing:
    """Simulates a round; where items do not always take the same, several of them, for some hundred requests."""
    stages = stages_of(asked, layout)
    count = max(1, _ENOUGH_REQUESTS // len(asked.traffic.requests)) if asked.costs.paces else 1
    rounds = tuple(simulate(asked.traffic.begin(), _batcher(asked, layout), stages) for _ in range(count))
    return EvaluatedServing(asked, layout, stages, rounds, _memory(asked, stages))


def _batcher(asked: Asked, layout: ServingLayout) -> Batcher:
    return Batcher(
        layout.num_microbatches,
        layout.microbatch_size,
        limits_of(asked.deployment),
        layout.chunk_tokens,
        layout.items_in_flight,
    )


def stages_of(asked: Asked, layout: ServingLayout) -> ServedStages:
    """The layout's stages with their costs."""
    edges = range(layout.mesh.pp_degree - 1)
    crosses = [crosses_nodes(layout.mesh, asked.setting, stage, stage + 1) for stage in edges]
    greedy = all(request.sampling.temperature == 0 for request in asked.traffic.requests)
    return ServedStages(asked.setting.shape, asked.dtype, layout.mesh, layout.stages, crosses, asked.costs, greedy)


def _memory(asked: Asked, stages: ServedStages) -> tuple[RankMemory, ...]:
    """What every pipeline rank holds: parameters, the whole cache, and the messages of the round's largest item."""
    slots, capacity = asked.slots, asked.setting.sequence_length
    tokens = max((size.tokens for size in stages.seen), default=0)
    return tuple(
        RankMemory(
            parameters=stages.parameter_bytes(stage),
            gradients=0,
            optimizer=0,
            activations=0,
            buffers=stages.buffer_bytes(stage, tokens),
            kv_cache=slots * capacity * stages.kv_bytes_per_token(stage),
        )
        for stage in range(stages.num_stages)
    )


def capacity_tokens(found: EvaluatedServing, stage: int) -> int | None:
    """Tokens that all sequences together could have in what a rank has left beside weights; None without a limit."""
    per_token, limit = found.stages.kv_bytes_per_token(stage), found.asked.setting.memory_bytes
    if limit is None or not per_token:
        return None
    memory = found.memory[stage]
    return max(0, limit - (memory.ledger_peak - memory.kv_cache)) // per_token
