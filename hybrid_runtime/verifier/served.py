"""Requests judged and shown: limits of latencies -> claims; latencies and phases of a side -> rows of the verdict.

Latencies are those of the rounds that speed is judged by (bare ones), each request of each round once. The rule for a
quantile is `decide_quantile`. Balance of prefills and decodes is judged by the rule of all compute, on the actions of
that kind alone; utilisation over whole rounds, with the pipeline's filling and draining in them. The steady state,
shown beside it, is what lies between the last rank's first action and the first rank's last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.exact import decimal_text
from hybrid_runtime.predicted_serving import LatencyKind
from hybrid_runtime.records import PHASES, RankRecords, Span, StepRecord
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.serving.latencies import LATENCIES, QUANTILES
from hybrid_runtime.verdict import Claim, Outcome
from hybrid_runtime.verdict_served import LatencyRow, PhaseRow, ServedSide
from hybrid_runtime.verifier.claims import balance_claim
from hybrid_runtime.verifier.decide_quantile import decide_quantile, quantile_interval, requests_needed
from hybrid_runtime.verifier.decision import more_text
from hybrid_runtime.verifier.finding import Finding, blocked, claim, figures, found, sentences, undecided
from hybrid_runtime.verifier.metrics import Metrics, percent
from hybrid_runtime.verifier.terms import Terms
from hybrid_runtime.verifier.trust import time_blocker

_WORDS: dict[LatencyKind, str] = {
    "first_token": "the time to the first token",
    "output_token": "the time per token after the first",
    "request": "the time to the whole answer",
}
_PHASES = {Kind.P: "prefill", Kind.D: "decode"}


def served_claims(deployment: Deployment, traced: Metrics, bare: Metrics, terms: Terms) -> Iterator[Claim]:
    """The promises that only a deployment that serves makes; nothing of any other."""
    if not deployment.serves:
        return
    targets = deployment.targets
    if targets.compute_balance_pp is not None and targets.compute_balance_metric.startswith("time"):
        for kind, name in _PHASES.items():
            if kind is Kind.P or deployment.workload.kind == "generate":
                yield balance_claim(deployment, traced.only(kind), terms, name)
    for kind_of_latency, limits in targets.latency_limits.items():
        for quantile, limit in limits.given():
            finding = _latency(deployment, bare, kind_of_latency, quantile, Fraction(limit), terms)
            text = f"{_WORDS[kind_of_latency]}, {quantile} over all requests, is at most {limit:f} s"
            name = f"{kind_of_latency}_{quantile}"
            yield claim(name, f"{kind_of_latency}_{quantile}_s", ("<=", limit, "s"), text, finding)


def _latency(
    deployment: Deployment, bare: Metrics, kind: LatencyKind, quantile: str, limit_s: Fraction, terms: Terms
) -> Finding:
    steps, part = _seconds(bare, kind), QUANTILES[quantile]
    lost = sum(not request.is_answered for step in bare.requests for request in step)
    if lost:
        return undecided("not_measured", f"{lost} requests were refused or cancelled, and nobody knows their latency")
    decision = decide_quantile(steps, part, limit_s, deployment.measurement.batch_steps, alpha=terms.alpha)
    if decision is None:
        return _too_few(steps, part)
    decision = blocked(decision, time_blocker(deployment, [bare], terms.driver) or terms.speed)
    measured = figures(decision, bare, _method(decision.steps_per_batch, bare), scale=1)
    return found(decision, measured, f"{decision.samples} requests in {len(steps)} rounds")


def _too_few(steps: list[list[Fraction]], part: Fraction) -> Finding:
    requests, needed = sum(map(len, steps)), requests_needed(part)
    each = Fraction(requests, len(steps)) if steps else Fraction()
    more = -(-(needed - requests) // each) if each else None
    detail = f"{requests} requests, the quantile needs {needed}: {needed - requests} more"
    detail = sentences(detail, more_text(more, "round") if more else "")
    return Finding(Outcome.INCONCLUSIVE, detail, "too_few_batches", None, more)


def _method(steps_per_batch: int, metrics: Metrics) -> str:
    return f"order statistics over batches of {steps_per_batch} rounds of {len(metrics.requests[0])} requests, wall"


def _seconds(metrics: Metrics, kind: LatencyKind) -> list[list[Fraction]]:
    return [[latency / 10**9 for latency in step] for step in metrics.latencies_ns(kind)]


def served_side(traced: Metrics, bare: Metrics, alpha: float) -> ServedSide:
    """The row of a side whose bare rounds are judged.

    Args:
        traced: its rounds with spans, if there are any.
    """
    requests = sum(map(len, bare.requests))
    return ServedSide(
        role=bare.side.role,
        rounds=len(bare.steps),
        requests=requests,
        requests_per_s=decimal_text(Fraction(requests * 10**9, sum(bare.windows_ns)), 3),
        latencies=tuple(_latency_rows(bare, alpha)),
        phases=tuple(_phase_rows(traced)),
    )


def _latency_rows(bare: Metrics, alpha: float) -> Iterator[LatencyRow]:
    for kind in LATENCIES:
        steps = _seconds(bare, kind)
        if not any(steps) or (kind == "request" and bare.side.deployment.workload.kind == "forward"):
            continue
        for name, part in QUANTILES.items():
            interval = quantile_interval(steps, part, bare.side.deployment.measurement.batch_steps, alpha=alpha)
            if interval is None:
                needed = f"n/a: needs {requests_needed(part)} requests"
                yield LatencyRow(latency=kind, quantile=name, measured=None, detail=needed)
            else:
                measured = figures(interval, bare, _method(interval.steps_per_batch, bare), scale=1)
                yield LatencyRow(latency=kind, quantile=name, measured=measured, detail=interval.note)


def _phase_rows(traced: Metrics) -> Iterator[PhaseRow]:
    """What every device did in the rounds with spans."""
    totals = {kind: _totals(traced.only(kind)) for kind in _PHASES}
    if not traced.steps or not all(totals.values()):
        return
    busy, window = _totals(traced), sum(traced.windows_ns)
    steady = _steady(traced)
    for index, device in enumerate(traced.devices):
        prefill_ns, decode_ns = totals[Kind.P][index], totals[Kind.D][index]
        yield PhaseRow(
            device=device,
            ranks=traced.ranks_of[index],
            prefill_ns=prefill_ns,
            decode_ns=decode_ns,
            prefill_share=percent(prefill_ns, sum(totals[Kind.P])),
            decode_share=percent(decode_ns, sum(totals[Kind.D])),
            busy=percent(busy[index], window),
            steady_busy=percent(steady[0][index], steady[1]),
            kv_cache_bytes=traced.memory_parts(index)["kv_cache"],
        )


def _totals(metrics: Metrics) -> list[int]:
    return [sum(column) for column in zip(*(metrics.compute_ns or []), strict=True)]


def _steady(traced: Metrics) -> tuple[list[int], int]:
    """Per device its compute in the steady state of all rounds, wall clock, and how long that lasted."""
    busy, length = [0] * len(traced.devices), 0
    for row in traced.rows():
        begin_ns, end_ns = _steady_part(row)
        if end_ns <= begin_ns:
            continue
        length += end_ns - begin_ns
        for device, ranks in enumerate(traced.ranks_of):
            busy[device] += sum(_inside(*row[rank], begin_ns, end_ns) for rank in ranks)
    return busy, length


def _steady_part(row: list[tuple[RankRecords, StepRecord]]) -> tuple[int, int]:
    """From the last rank's first action to the first rank's last one, on the common clock; empty without actions."""
    spans = [
        [
            (span.start_ns + rank.header.clock_offset_ns, span.end_ns + rank.header.clock_offset_ns)
            for span in _work(step)
        ]
        for rank, step in row
    ]
    if not all(spans):
        return 0, 0
    return max(own[0][0] for own in spans), min(own[-1][1] for own in spans)


def _work(step: StepRecord) -> list[Span]:
    return [span for span in step.spans if span.name not in PHASES]


def _inside(rank: RankRecords, step: StepRecord, begin_ns: int, end_ns: int) -> int:
    """Compute within a part of the step; of an action that crosses its ends, as much of its time."""
    offset_ns, total = rank.header.clock_offset_ns, Fraction()
    for span in _work(step):
        start, end = span.start_ns + offset_ns, span.end_ns + offset_ns
        overlap = min(end, end_ns) - max(start, begin_ns)
        if overlap > 0:
            total += Fraction((end - start - span.wait_ns) * overlap, end - start)
    return round(total)
