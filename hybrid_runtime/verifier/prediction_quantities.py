"""What of a prediction can be compared with a run: predicted and measured, of the step or of every pipeline rank.

step_time     median window of the judged steps                wall, only where that is a measurement
busy          median of what the rank's device computed        wall, or the thread's clock where cores are shared
latencies     median over requests, where any are served       wall; shown only
idle          mean of what is left of a window                 wall; shown only
peak_memory   most bytes at once                               byte ledger, or the allocator's peak
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from statistics import median
from typing import Literal, NamedTuple

from hybrid_runtime.predicted import PredictedRank, PredictedStep
from hybrid_runtime.predicted_serving import LatencyKind
from hybrid_runtime.serving.latencies import LATENCIES, QUANTILES, quantile
from hybrid_runtime.verdict_prediction import QuantityId
from hybrid_runtime.verifier.metrics import Metrics
from hybrid_runtime.verifier.time_budget import rank_parts
from hybrid_runtime.verifier.trust import Blocker

TIME_LIMIT = Fraction(10, 100)
MEMORY_LIMIT = Fraction(5, 100)
MIN_STEPS = 5  # fewer measured steps have no median to speak of

_LATENCY_WORDS: dict[LatencyKind, str] = {
    "first_token": "time to the first token",
    "output_token": "time per token after the first",
    "request": "time to the whole answer",
}

Pair = tuple[Fraction, Fraction]  # predicted, measured


class Compared(NamedTuple):
    """A quantity before it is judged.

    Attributes:
        unit: of all figures, "ns" or "bytes".
        pairs: predicted and measured by pipeline rank; of the step under None.
        limit: largest error that counts as predicted; None for what is shown only.
        interval: p10 and p90 that were predicted.
    """

    id: QuantityId
    text: str
    unit: Literal["ns", "bytes"]
    label: str
    method: str
    pairs: Mapping[int | None, Pair]
    limit: Fraction | None = None
    interval: tuple[int, int] | None = None


def compared(predicted: PredictedStep, metrics: Metrics, blocker: Blocker | None) -> Iterator[Compared]:
    """Every quantity that both sides know; `blocker` says why wall-clock time is no measurement, if it is not."""
    if blocker is None and len(metrics.bare.steps) >= MIN_STEPS:
        yield _step_time(predicted, metrics.bare)
        yield from _latencies(predicted, metrics.bare)
    if len(metrics.steps) >= MIN_STEPS:
        if blocker is None or metrics.clock == "thread_cpu":
            yield from _busy(predicted, metrics)
        if blocker is None and has_spans(metrics):
            yield from _idle(predicted, metrics)
    yield from _peak_memory(predicted, metrics)


def has_spans(metrics: Metrics) -> bool:
    """Whether every measured step recorded what it did."""
    return all(step.spans for rank in metrics.side.ranks for step in metrics.measured(rank))


def _step_time(predicted: PredictedStep, bare: Metrics) -> Compared:
    time, label = predicted.step_time, predicted.labels.get("step_time", "modelled")
    method = f"median window of {len(bare.steps)} measured steps, wall"
    pair = (Fraction(time.p50_ns), bare.median_step_ns)
    interval = (time.p10_ns, time.p90_ns)
    return Compared("step_time", "time of a step", "ns", label, method, {None: pair}, TIME_LIMIT, interval)


def _latencies(predicted: PredictedStep, bare: Metrics) -> Iterator[Compared]:
    for kind in LATENCIES:
        times = None if predicted.serving is None else getattr(predicted.serving, kind)
        measured = sorted(latency for step in bare.latencies_ns(kind) for latency in step)
        if times is None or not measured:
            continue
        method = f"median over {len(measured)} requests, wall"
        pair = (Fraction(times.median_ns), quantile(measured, QUANTILES["median"]))
        label = predicted.labels.get("step_time", "modelled")
        yield Compared(kind, _LATENCY_WORDS[kind], "ns", label, method, {None: pair}, TIME_LIMIT)


def _busy(predicted: PredictedStep, metrics: Metrics) -> Iterator[Compared]:
    pairs = _by_rank(predicted, _busy_ns(metrics), lambda rank: rank.time.compute_ns + rank.time.optimizer_ns)
    if pairs:
        method = f"median of {len(metrics.steps)} recorded steps, {metrics.clock}, mean over the rank's peers"
        label = predicted.labels.get("compute", "modelled")
        yield Compared("busy", "busy time of a rank", "ns", label, method, pairs, TIME_LIMIT)


def _idle(predicted: PredictedStep, metrics: Metrics) -> Iterator[Compared]:
    measured = {pp: parts["idle"] for pp, parts in rank_parts(metrics, "wall").items()}
    pairs = _by_rank(predicted, measured, lambda rank: rank.time.idle_ns)
    if pairs:
        method = f"mean of {len(metrics.steps)} recorded steps, wall"
        yield Compared("idle", "waiting of a rank for others", "ns", "modelled", method, pairs)


def _peak_memory(predicted: PredictedStep, metrics: Metrics) -> Iterator[Compared]:
    allocator = metrics.kind == "cuda" and all(rank.memory.allocated_peak is not None for rank in predicted.ranks)

    def held(rank: PredictedRank) -> int:
        return (rank.memory.allocated_peak or 0) if allocator else rank.memory.ledger_peak

    pairs = _by_rank(predicted, _peak_bytes(metrics, allocator=allocator), held)
    if pairs:
        method = f"{'allocator peak' if allocator else 'byte ledger'}, most of the rank's peers"
        label = predicted.labels.get("memory", "modelled")
        yield Compared("peak_memory", "peak memory of a rank", "bytes", label, method, pairs, MEMORY_LIMIT)


def _by_rank(
    predicted: PredictedStep, measured: Mapping[int, Fraction], figure: Callable[[PredictedRank], int]
) -> dict[int | None, Pair]:
    """Predicted and measured by pipeline rank; nothing unless every rank has both."""
    ranks = {rank.pp_rank: Fraction(figure(rank)) for rank in predicted.ranks}
    if ranks.keys() != measured.keys():
        return {}
    return {pp: (ranks[pp], measured[pp]) for pp in sorted(ranks)}


def _busy_ns(metrics: Metrics) -> dict[int, Fraction]:
    """Per pipeline rank, the median of its busy time over the steps, a mean over its peers; nothing if not recorded."""
    medians: dict[int, list[Fraction]] = {}
    for rank in metrics.side.ranks:
        times = [metrics.compute_of(step, metrics.clock) for step in metrics.measured(rank)]
        known = [Fraction(time) for time in times if time is not None]
        if len(known) < len(times) or not known:
            return {}
        medians.setdefault(rank.header.pp, []).append(median(known))
    return {pp: sum(times, Fraction()) / len(times) for pp, times in medians.items()}


def _peak_bytes(metrics: Metrics, *, allocator: bool) -> dict[int, Fraction]:
    """Per pipeline rank, the most bytes that any of its peers held; nothing if a rank was never weighed."""
    peaks: dict[int, list[int]] = {}
    for rank in metrics.side.ranks:
        field = "allocated_peak" if allocator else "ledger_peak"
        steps = metrics.measured(rank) if allocator else (step for step in rank.steps if step.ledger)
        known = [peak for step in steps if (peak := getattr(step.memory, field)) is not None]
        if not known:
            return {}
        peaks.setdefault(rank.header.pp, []).append(max(known))
    return {pp: Fraction(max(found)) for pp, found in peaks.items()}
