"""What a plan promises of itself: step time, per rank where it goes and what it holds. Stored in plan.json, judged by
the run. Times are whole nanoseconds, sizes whole bytes.

Every figure has a label: `rehearsed` (real kernels of the real stage, alone on one device), `measured` (records of a
real run), `modelled` (communication, and whatever follows from it), `declared` (somebody wrote it down).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from hybrid_runtime.predicted_serving import PredictedServing

Label = Literal["measured", "rehearsed", "modelled", "declared"]
Source = Literal["analytic", "calibration", "rehearsal", "records"]


def _labels(compute: Label, communication: Label, update: Label) -> dict[str, Label]:
    """Of every component of a prediction; whatever follows from a replay is modelled."""
    return {
        "compute": compute,
        "memory": compute,
        "tensor_parallel": communication,
        "messages": communication,
        "data_parallel": communication,
        "optimizer": update,
        "overhead": update,
        "step_time": "modelled",
        "utilisation": "modelled",
    }


LABELS: dict[Source, dict[str, Label]] = {  # what a source makes of each figure; no plan can say otherwise
    "analytic": _labels("modelled", "modelled", "modelled"),
    "calibration": _labels("rehearsed", "modelled", "modelled"),
    "rehearsal": _labels("rehearsed", "modelled", "rehearsed"),
    "records": _labels("measured", "measured", "modelled"),
}


class PlanPart(BaseModel):
    """Base of all that plan.json consists of. Fields named in `_later` are not written while they have their defaults:
    plans from before keep their hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    _later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        values: dict[str, Any] = write(self)
        return {
            name: value
            for name, value in values.items()
            if name not in self._later or getattr(self, name) != fields[name].default
        }


class TimeInterval(PlanPart):
    """A time that is expected to lie between p10 and p90 in eight runs of ten."""

    p10_ns: int
    p50_ns: int
    p90_ns: int


class RankTime(PlanPart):
    """Where one step goes on a rank; the parts add up to the step's p50.

    Attributes:
        forward_ns, backward_ns, weight_grad_ns: compute of F, of B and I, and of W; collectives not included.
        tensor_parallel_ns: collectives inside those that nothing hides.
        messages_ns: time in which the rank itself moves stage-to-stage bytes.
        data_parallel_ns: gradient collectives that nothing hides.
        optimizer_ns: clearing, norm, clipping and update.
        overhead_ns: what the runtime adds per action and per step.
        idle_ns: waiting for other pipeline ranks: the bubble.
    """

    forward_ns: int = 0
    backward_ns: int = 0
    weight_grad_ns: int = 0
    tensor_parallel_ns: int = 0
    messages_ns: int = 0
    data_parallel_ns: int = 0
    optimizer_ns: int = 0
    overhead_ns: int = 0
    idle_ns: int = 0

    @property
    def compute_ns(self) -> int:
        return self.forward_ns + self.backward_ns + self.weight_grad_ns

    @property
    def total_ns(self) -> int:
        return sum(getattr(self, name) for name in type(self).model_fields)


class RankMemory(PlanPart):
    """Most bytes that a rank holds at once, by component; the byte ledger's peak is their sum.

    Attributes:
        activations: with what waits for weight gradients.
        buffers: of messages between stages, and embedding results that were looked up early.
        kv_cache: keys and values of the sequences that are served.
        allocated_peak: of the device's allocator, temporaries included; None where that was not predicted.
    """

    _later: ClassVar[tuple[str, ...]] = ("kv_cache",)

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    kv_cache: int = 0
    allocated_peak: int | None = None

    @property
    def ledger_peak(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.buffers + self.kv_cache


class PredictedRank(PlanPart):
    """One pipeline rank; all its tensor-parallel ranks and replicas are alike."""

    pp_rank: int
    time: RankTime
    memory: RankMemory
    flops: int


class PredictedBaseline(PlanPart):
    """The same figures for a plan that the chosen one is compared with: same devices, model, batch.

    Attributes:
        kind: e.g. "naive_pipeline", "equal layers, 1f1b, m = p", "equal layers, 1f1b, same m", "dp_only".
        speed_up: its p50 divided by the chosen plan's, as decimal text.
        why_not: a sentence where it cannot run at all; the figures are then None.
    """

    kind: str
    mesh: str
    schedule: str
    num_microbatches: int
    step_time: TimeInterval | None
    speed_up: str | None
    why_not: str | None = None


class Alternative(PlanPart):
    """A plan that was not chosen, and the one line that says why; with `plan --try` every plan that was tried.

    Attributes:
        step_time_ns: predicted, its p50.
        measured_ns: median of the steps of its trial; None where it was not tried.
    """

    description: str
    step_time_ns: int | None
    peak_bytes: int | None
    why_not: str
    measured_ns: int | None = None


class PredictedStep(PlanPart):
    """The prediction of a plan.

    Attributes:
        step_time: from the barrier before a step to the end of its update.
        pipeline_ns: from the first action's start to the last one's end: the replay's makespan.
        ranks: by pp rank.
        bound_ns: no schedule of these stages can have a shorter pipeline.
        labels: how every figure came about: LABELS of its source.
        source: "analytic" (FLOPs and declared rates), "calibration", "rehearsal" or "records" (of an earlier run).
        fingerprint: the machine and the versions that the costs were measured on; empty for "analytic".
        baselines, alternatives: what it was compared with.
        serving: of a deployment that serves requests, whose step is one round of them.
        asked: `Traffic.fingerprint` of those requests.
    """

    _later: ClassVar[tuple[str, ...]] = ("serving", "asked")

    step_time: TimeInterval
    pipeline_ns: int
    bound_ns: int
    ranks: tuple[PredictedRank, ...]
    labels: dict[str, Label]
    source: Source
    fingerprint: dict[str, str] = {}
    baselines: tuple[PredictedBaseline, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    serving: PredictedServing | None = None
    asked: dict[str, str] = {}
