"""Candidate against baseline: are the two sides comparable, and if so, how much faster is the candidate?

    time --->   A1 B1   B2 A2   A3 B3   B4 A4        pair i = (A_i, B_i), neighbours in time;
                 ln      ln      ln      ln          a drift of the machine changes sign from pair to pair

Latency takes a block's median step window, throughput its tokens over its windows. Both become a ratio of times
"candidate / baseline", so both are decided by the same one-sided interval on the log scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, zip_longest
from statistics import median
from typing import NamedTuple

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.exact import decimal_text
from hybrid_runtime.fingerprint import differences
from hybrid_runtime.records import PLANTED, StepRecord
from hybrid_runtime.verdict import Claim
from hybrid_runtime.verifier.decide_ratio import decide_ratio
from hybrid_runtime.verifier.decision import Decision
from hybrid_runtime.verifier.finding import Finding, blocked, claim, figures, found, sentences, undecided
from hybrid_runtime.verifier.metrics import Metrics, block_medians
from hybrid_runtime.verifier.numerics import work_apart
from hybrid_runtime.verifier.side import Side
from hybrid_runtime.verifier.terms import Terms
from hybrid_runtime.verifier.trust import Blocker, time_blocker
from hybrid_runtime.verifier.work_done import fewer_flops

_LATENCY_WORDS = {
    "request": "an answer",
    "first_token": "a first token",
    "output_token": "a token after the first",
}


class Baseline(NamedTuple):
    """What there is to compare with: metrics, or the sentence why it could not be run, or neither."""

    metrics: Metrics | None = None
    infeasible: str | None = None


def comparisons(deployment: Deployment, candidate: Metrics, baseline: Baseline, terms: Terms) -> Iterator[Claim]:
    """The latency and throughput claims of the targets."""
    targets, declared = deployment.targets, deployment.declared
    against = deployment.baseline.kind if deployment.baseline else "none is named"
    if (reduction := targets.latency_reduction_percent) is not None:
        what = "a step takes" if deployment.load is None else f"{_LATENCY_WORDS[deployment.load.latency]} takes"
        text = f"{what} at least {reduction:f} % less time than the baseline's ({against})"
        finding = latency(deployment, candidate, baseline, Fraction(reduction) / 100, terms)
        shown = declared.latency_reduction
        yield claim("latency_reduction", "latency_reduction", (">=", reduction, "%"), text, finding, shown)
    if (gain := targets.throughput_gain_percent) is not None:
        text = f"at least {gain:f} % more tokens/s than the baseline ({against})"
        finding = throughput(deployment, candidate, baseline, Fraction(gain) / 100, terms)
        yield claim("throughput_gain", "throughput_gain", (">=", gain, "%"), text, finding, declared.throughput_gain)


def latency(
    deployment: Deployment, candidate: Metrics, baseline: Baseline, reduction: Fraction, terms: Terms
) -> Finding:
    """1 - T_candidate / T_baseline of block medians, at least `reduction`."""
    other = baseline.metrics
    if other is None or not candidate.steps or not other.steps:
        return _unmeasured(baseline)
    medians = block_medians(candidate), block_medians(other)
    ratios = [new / old for new, old in zip(*medians, strict=False)]
    if not ratios:
        return undecided("not_measured", "a block of a side has no request with this latency")
    decision = _decide(deployment, candidate, other, ratios, 1 - reduction, terms)
    shown = decision.mapped(lambda ratio: 1 - ratio)
    what = "step" if deployment.load is None else deployment.load.latency.replace("_", " ")
    method = f"t on {shown.samples} paired block log-ratios of median {what}s, wall, one launch"
    ours, theirs = (decimal_text(median(of_side) / 10**9, 6) for of_side in medians)
    sides = f"median {what} {ours} s against {theirs} s"
    if deployment.load is not None:
        sides = f"{sides} (medians of the blocks' medians)"
    return found(shown, figures(shown, candidate, method), sides)


def throughput(deployment: Deployment, candidate: Metrics, baseline: Baseline, gain: Fraction, terms: Terms) -> Finding:
    """X_candidate / X_baseline - 1 of tokens per window, at least `gain`."""
    other = baseline.metrics
    if other is None or not candidate.steps or not other.steps:
        return _unmeasured(baseline)
    ratios = [new / old for new, old in zip(_block_costs(candidate), _block_costs(other), strict=False)]
    decision = _decide(deployment, candidate, other, ratios, 1 / (1 + gain), terms)
    shown = decision.mapped(lambda ratio: 1 / ratio - 1)
    method = f"t on {shown.samples} paired block log-ratios of tokens/s, wall, one launch"
    rates = [decimal_text(side.tokens_per_s, 1) for side in (candidate, other)]
    return found(shown, figures(shown, candidate, method), f"{rates[0]} tokens/s against {rates[1]}")


def _unmeasured(baseline: Baseline) -> Finding:
    if baseline.infeasible:
        return undecided("baseline_infeasible", baseline.infeasible)
    return undecided("not_measured", "no measured steps of candidate and baseline; run `verify` with a [baseline]")


def _decide(
    deployment: Deployment,
    candidate: Metrics,
    other: Metrics,
    ratios: Sequence[Fraction],
    limit: Fraction,
    terms: Terms,
) -> Decision:
    """The ratio rule, then whatever makes the sides incomparable or their clocks doubtful."""
    blocker = (
        different_load(candidate, other)
        or time_blocker(deployment, [candidate, other], terms.driver)
        or not_alternated(candidate, other)
        or terms.speed
    )
    decision = decide_ratio(ratios, limit, alpha=terms.alpha)
    if decision.more_needed:  # in block pairs
        decision = replace(decision, more_needed=decision.more_needed * deployment.measurement.block_steps)
    return blocked(decision, blocker)


def _block_costs(metrics: Metrics) -> list[Fraction]:
    """ns per token of each block."""
    windows, steps = metrics.windows_ns, metrics.steps
    return [
        Fraction(sum(windows[index] for index in block), sum(steps[index].tokens for index in block))
        for block in metrics.blocks()
    ]


def different_load(candidate: Metrics, other: Metrics) -> Blocker | None:
    """Whether the sides did different work: other settings, other tokens, or losses that drift apart."""
    ours, theirs = candidate.side, other.side
    devices = [sorted({rank.header.device.name for rank in side.ranks}) for side in (ours, theirs)]
    if devices[0] != devices[1]:
        words = " and ".join(", ".join(names) for names in devices)
        return Blocker("hardware_mismatch", f"candidate and baseline ran on different devices: {words}")
    fields = _load_fields(ours.deployment), _load_fields(theirs.deployment)
    differing = [name for name in fields[0] if fields[0][name] != fields[1][name]]
    if [unit.name for unit in ours.plan.units] != [unit.name for unit in theirs.plan.units]:
        differing.append("the plan's units")
    if differing:
        return Blocker("loads_differ", f"candidate and baseline differ in {', '.join(differing)}")
    asked = [side.ranks[0].header.asked for side in (ours, theirs)]
    if all(asked) and (apart := differences(*asked)):
        return Blocker("loads_differ", f"the sides were asked other requests: {'; '.join(apart)}")
    if fewer := fewer_flops(ours.ranks, ours.plan) or fewer_flops(theirs.ranks, theirs.plan):
        return Blocker("loads_differ", fewer)
    steps = zip(_of_the_model(ours), _of_the_model(theirs), strict=False)
    for number, (step, reference) in enumerate(steps):
        if step.tokens != reference.tokens:
            return Blocker("loads_differ", f"step {number}: {step.tokens} tokens against {reference.tokens}")
    note = work_apart(candidate, other)
    return Blocker("loads_differ", note) if note else None


def _of_the_model(side: Side) -> list[StepRecord]:
    return [step for step in side.ranks[0].steps if step.purpose != PLANTED]


def _load_fields(deployment: Deployment) -> dict[str, object]:
    batch = deployment.batch
    return {
        "model": deployment.model,
        "optimizer": deployment.optimizer,
        "data": deployment.data,
        "workload.kind": deployment.workload.kind,
        "workload.seed": deployment.workload.seed,
        "batch.global_batch_size": batch and batch.global_batch_size,
        "batch.sequence_length": batch and batch.sequence_length,
        "load": deployment.load,
        "hardware.threads_per_rank": deployment.hardware.threads_per_rank,
    }


def not_alternated(candidate: Metrics, other: Metrics) -> Blocker | None:
    """Whether the blocks were not run in neighbouring pairs (A B B A ...), one at a time, as their clocks show.

    Without alternation, a drift of the machine looks like a speed-up.
    """
    spans = sorted([(*span, "A") for span in _block_spans(candidate)] + [(*span, "B") for span in _block_spans(other)])
    order = "".join(side for _, _, side in spans)
    pairs = [{first, second} for first, second in zip_longest(order[::2], order[1::2])]
    doubt = max(rank.header.clock_uncertainty_ns for side in (candidate, other) for rank in side.side.ranks)
    overlap = any(end > start + 2 * max(0, doubt) for (_, end, _), (start, _, _) in pairwise(spans))
    if overlap or any(pair != {"A", "B"} for pair in pairs):
        note = sentences(f"the sides' blocks were run in the order {order}", "some at the same time" if overlap else "")
        return Blocker("aa_failed", f"{note}; without alternating pairs a drift looks like a speed-up")
    return None


def _block_spans(metrics: Metrics) -> list[tuple[int, int]]:
    """Start and end of every block over all ranks, on the common clock."""
    starts = [min(rank.header.clock_offset_ns + step.start_ns for rank, step in row) for row in metrics.rows()]
    ends = [max(rank.header.clock_offset_ns + step.end_ns for rank, step in row) for row in metrics.rows()]
    return [(starts[block[0]], ends[block[-1]]) for block in metrics.blocks()]
