"""Candidate against baseline: are the two sides comparable, and if so, how much faster is the candidate?

    time --->   A1 B1   B2 A2   A3 B3   B4 A4        pair i = (A_i, B_i), neighbours in time;
                 ln      ln      ln      ln          a drift of the machine changes sign from pair to pair

Latency takes a block's median step window, throughput its tokens over its windows. Both become a ratio of times
"candidate / baseline", so both are decided by the same one-sided interval on the log scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise, zip_longest
from statistics import median
from typing import NamedTuple

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.exact import decimal_text
from hybrid_runtime.verdict import Claim
from hybrid_runtime.verifier.decide import Decision, decide_ratio
from hybrid_runtime.verifier.finding import Finding, blocked, claim, figures, found, sentences, undecided
from hybrid_runtime.verifier.metrics import Metrics
from hybrid_runtime.verifier.trust import Blocker, time_blocker
from hybrid_runtime.verifier.work_done import fewer_flops

# Equal work gives equal losses while rounding has not grown: training is chaotic, and a difference of 1e-7 in step 10
# is one of 1e-3 in step 40 and of 1e-2 in step 100. So the first steps must agree closely, all others on average.
EARLY_STEPS = 10
EARLY_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
MEAN_TOLERANCE = 2e-2


class Baseline(NamedTuple):
    """What there is to compare with: metrics, or the sentence why it could not be run, or neither."""

    metrics: Metrics | None = None
    infeasible: str | None = None


def comparisons(
    deployment: Deployment, candidate: Metrics, baseline: Baseline, driver: Blocker | None
) -> Iterator[Claim]:
    """The latency and throughput claims of the targets."""
    targets, declared = deployment.targets, deployment.declared
    against = deployment.baseline.kind if deployment.baseline else "none is named"
    if (reduction := targets.latency_reduction_percent) is not None:
        text = f"a step takes at least {reduction:f} % less time than the baseline's ({against})"
        finding = latency(deployment, candidate, baseline, Fraction(reduction) / 100, driver)
        shown = declared.latency_reduction
        yield claim("latency_reduction", "latency_reduction", (">=", reduction, "%"), text, finding, shown)
    if (gain := targets.throughput_gain_percent) is not None:
        text = f"at least {gain:f} % more tokens/s than the baseline ({against})"
        finding = throughput(deployment, candidate, baseline, Fraction(gain) / 100, driver)
        yield claim("throughput_gain", "throughput_gain", (">=", gain, "%"), text, finding, declared.throughput_gain)


def latency(
    deployment: Deployment, candidate: Metrics, baseline: Baseline, reduction: Fraction, driver: Blocker | None
) -> Finding:
    """1 - T_candidate / T_baseline of block medians, at least `reduction`."""
    other = baseline.metrics
    if other is None or not candidate.steps or not other.steps:
        return _unmeasured(baseline)
    ratios = [new / old for new, old in zip(_block_medians(candidate), _block_medians(other), strict=False)]
    decision = _decide(deployment, candidate, other, ratios, 1 - reduction, driver)
    shown = decision.mapped(lambda ratio: 1 - ratio)
    method = f"t on {shown.samples} paired block log-ratios of median steps, wall, one launch"
    sides = f"median step {_seconds(candidate)} s against {_seconds(other)} s"
    return found(shown, figures(shown, candidate, method), sides)


def throughput(
    deployment: Deployment, candidate: Metrics, baseline: Baseline, gain: Fraction, driver: Blocker | None
) -> Finding:
    """X_candidate / X_baseline - 1 of tokens per window, at least `gain`."""
    other = baseline.metrics
    if other is None or not candidate.steps or not other.steps:
        return _unmeasured(baseline)
    ratios = [new / old for new, old in zip(_block_costs(candidate), _block_costs(other), strict=False)]
    decision = _decide(deployment, candidate, other, ratios, 1 / (1 + gain), driver)
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
    driver: Blocker | None,
) -> Decision:
    """The ratio rule, then whatever makes the sides incomparable or their clocks doubtful."""
    blocker = (
        different_load(candidate, other)
        or time_blocker(deployment, [candidate, other], driver)
        or not_alternated(candidate, other)
    )
    return blocked(decide_ratio(ratios, limit), blocker)


def _block_medians(metrics: Metrics) -> list[Fraction]:
    windows = [Fraction(window) for window in metrics.windows_ns]
    return [median(windows[index] for index in block) for block in metrics.blocks()]


def _block_costs(metrics: Metrics) -> list[Fraction]:
    """ns per token of each block."""
    windows, steps = metrics.windows_ns, metrics.steps
    return [
        Fraction(sum(windows[index] for index in block), sum(steps[index].tokens for index in block))
        for block in metrics.blocks()
    ]


def _seconds(metrics: Metrics) -> str:
    return decimal_text(metrics.median_step_ns / 10**9, 6)


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
    if fewer := fewer_flops(ours.ranks, ours.plan, theirs.ranks):
        return Blocker("loads_differ", fewer)
    for number, (step, reference) in enumerate(zip(ours.ranks[0].steps, theirs.ranks[0].steps, strict=False)):
        if step.tokens != reference.tokens:
            return Blocker("loads_differ", f"step {number}: {step.tokens} tokens against {reference.tokens}")
    pairs = list(zip(candidate.losses(), other.losses(), strict=False))
    note = losses_apart(pairs, ours.deployment.model.dtype if ours.deployment.model else "float32")
    return Blocker("loads_differ", note) if note else None


def losses_apart(pairs: Sequence[tuple[str | None, str | None]], dtype: str) -> str | None:
    """Why the (candidate, baseline) losses of the common steps do not show equal work; None if they do."""
    numbers: list[tuple[float, float]] = []
    for step, (loss, reference) in enumerate(pairs):
        if loss is None or reference is None:
            return f"step {step}: a side recorded no loss, so equal work is not shown"
        numbers.append((float(loss), float(reference)))
        tolerance = EARLY_TOLERANCE[dtype] if step < EARLY_STEPS else math.inf
        close = math.isclose(*numbers[-1], rel_tol=tolerance) and all(map(math.isfinite, numbers[-1]))
        if not close:
            return f"step {step}: loss {loss} against the baseline's {reference}; the sides do different work"
    ours, theirs = (sum(column) / len(numbers) for column in zip(*numbers)) if numbers else (0.0, 0.0)
    if not math.isclose(ours, theirs, rel_tol=MEAN_TOLERANCE):
        return f"mean loss {ours:.4f} against the baseline's {theirs:.4f}; the sides do different work"
    return None


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
