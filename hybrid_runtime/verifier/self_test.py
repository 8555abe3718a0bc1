"""What the instrument finds out about itself in every verification, before its figures are believed.

planted    known imbalances of 0.5, 1.5 and 2 points must come out PASS, FAIL, FAIL at a limit of 1 (`planted`); its
           steps are short, so that it may look more often than the claims do, with an error budget of its own
aa         the candidate against itself, block by block: no speed-up may be found where there is none
observer   steps with spans recorded against bare ones: what measuring costs

candidate's bare blocks     A1  A2  A3  A4  A5  A6         a drift of the machine changes sign from pair to pair,
as if of two sides          a   b   b   a   a   b          as in the comparison with the baseline
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import takewhile

from hybrid_runtime.exact import decimal_text
from hybrid_runtime.planted import LEVELS, LIMIT, extra_units, part_name, planted_gap
from hybrid_runtime.records import PLANTED, SPEED, StepRecord
from hybrid_runtime.verdict import Measured, Outcome, SelfCheck
from hybrid_runtime.verifier.decide import decide_range
from hybrid_runtime.verifier.decide_ratio import MIN_BLOCK_PAIRS, decide_equivalence, decide_ratio
from hybrid_runtime.verifier.decision import Decision
from hybrid_runtime.verifier.finding import figures
from hybrid_runtime.verifier.metrics import Clock, Metrics, block_medians, measure, percent
from hybrid_runtime.verifier.side import Side
from hybrid_runtime.verifier.statistics import ALPHA
from hybrid_runtime.verifier.steady import steady_from

EXPECTED = (Outcome.PASS, Outcome.FAIL, Outcome.FAIL)  # of LEVELS
PLANTED_LOOKS = 4  # of the planted imbalances, fixed before any data; each spends its share of the error
OBSERVER_LIMIT = Fraction(101, 100)
DEFAULT_MARGIN = Fraction(3, 100)  # of A/A where no speed is promised
MARGIN_PARTS = 3  # A/A may find a third of what the smallest speed claim promises


def self_tests(metrics: Metrics, alpha: float) -> Iterator[SelfCheck]:
    """Every self-test that the run of one side holds the records of."""
    bare = metrics.of(SPEED)
    if bare.steps:
        yield _steady(metrics.side)
    yield from planted_checks(metrics.side)
    if bare.steps:
        yield _aa(bare, alpha)
        if metrics.steps and block_medians(metrics) and block_medians(bare):
            yield _observer(metrics, bare, alpha)


def _steady(side: Side) -> SelfCheck:
    """Whether step times had settled when the warm-up ended; judged data that drifts is found where it is judged."""
    steps = list(takewhile(lambda step: step.phase == "warmup", side.ranks[0].steps))
    settled = steady_from([step.end_ns - step.start_ns for step in steps])
    return SelfCheck(
        id="steady_state",
        text="step times settle in the first half of the warm-up, which is prolonged until they have, within limits",
        outcome=Outcome.INCONCLUSIVE if settled is None else Outcome.PASS,
        reason="no_steady_state" if settled is None else None,
        detail=f"{len(steps)} warm-up steps, "
        + ("not settled" if settled is None else f"settled from step {settled} on"),
    )


def planted_checks(side: Side) -> list[SelfCheck]:
    """The planted imbalances, one row per level; empty if none were run."""
    rows = list(zip(*(rank.measured(PLANTED) for rank in side.ranks), strict=True))
    if not rows:
        return []
    clock = measure(side).clock
    return [_planted(side, rows, level, clock) for level in range(len(LEVELS))]


def _planted(side: Side, rows: Sequence[Sequence[StepRecord]], level: int, clock: Clock) -> SelfCheck:
    ranks = len(side.ranks)
    gap = planted_gap(extra_units(LEVELS[level], ranks), ranks)
    points, expected = decimal_text(LEVELS[level] * 100), EXPECTED[level]
    text = f"a planted imbalance of {percent(gap, 1, 3)} points must {expected.value} at a limit of 1"
    name = f"planted_{points}"
    table = [_turned(row, level, clock) for row in rows]
    if any(row is None for row in table):
        note = "a step does not hold the work that was planted"
        return SelfCheck(id=name, text=text, outcome=Outcome.FAIL, reason="planted_failed", detail=note)
    batch_steps = -(-side.deployment.measurement.batch_steps // ranks) * ranks  # the planted rank goes round in each
    decision = decide_range([row for row in table if row is not None], LIMIT, batch_steps, alpha=ALPHA / PLANTED_LOOKS)
    method = f"pairwise t over {decision.samples} batches of {decision.steps_per_batch} planted steps, {clock}"
    found = decision.outcome
    outcome = Outcome.PASS if found is expected else found if found is Outcome.INCONCLUSIVE else Outcome.FAIL
    return SelfCheck(
        id=name,
        text=text,
        unit="pp",
        outcome=outcome,
        reason="planted_failed" if outcome is Outcome.FAIL else decision.reason,
        measured=figures(decision, measure(side).of(PLANTED), method),
        detail=f"came out {found.value}" + (f"; {decision.note}" if decision.note else ""),
    )


def _turned(row: Sequence[StepRecord], level: int, clock: Clock) -> list[int] | None:
    """Work times of a step up to a part, the planted rank's first; None if not exactly one rank had extra work."""
    extra = [rank for rank, step in enumerate(row) if any(span.name == part_name(1) for span in step.spans)]
    if len(extra) != 1:
        return None
    counted = {part_name(part) for part in range(level + 2)}
    times = [
        sum(span.cpu_ns if clock == "thread_cpu" else span.end_ns - span.start_ns - span.wait_ns for span in spans)
        for spans in ([span for span in step.spans if span.name in counted] for step in row)
    ]
    return [*times[extra[0] :], *times[: extra[0]]] if all(time > 0 for time in times) else None


def _aa(bare: Metrics, alpha: float) -> SelfCheck:
    medians = block_medians(bare)
    pairs = list(zip(medians[::2], medians[1::2], strict=False))
    if not pairs:
        text = "the candidate against itself"
        note = f"{len(medians)} block, at least {2 * MIN_BLOCK_PAIRS} are needed"
        return SelfCheck(id="aa", text=text, outcome=Outcome.INCONCLUSIVE, reason="too_few_batches", detail=note)
    ratios = [first / second if number % 2 == 0 else second / first for number, (first, second) in enumerate(pairs)]
    margin = aa_margin(bare)
    text = f"the candidate against itself: no speed-up beyond {percent(margin, 1)} %, a third of the smallest promise"
    return _of_ratio("aa", text, bare, decide_equivalence(ratios, margin, alpha=alpha))


def aa_margin(metrics: Metrics) -> Fraction:
    """How far from 1 a ratio of equal sides may lie: a third, on the log scale, of the smallest speed promise."""
    targets = metrics.side.deployment.targets
    limits = []
    if targets.latency_reduction_percent:
        limits.append(1 - Fraction(targets.latency_reduction_percent) / 100)
    if targets.throughput_gain_percent:
        limits.append(1 / (1 + Fraction(targets.throughput_gain_percent) / 100))
    inside = [-math.log(limit) for limit in limits if 0 < limit < 1]
    return Fraction(math.expm1(min(inside) / MARGIN_PARTS)) if inside else DEFAULT_MARGIN


def _observer(traced: Metrics, bare: Metrics, alpha: float) -> SelfCheck:
    ratios = [with_spans / without for with_spans, without in zip(block_medians(traced), block_medians(bare))]
    text = "recording spans and waits makes a step at most 1 % longer; speed is judged from bare steps all the same"
    return _of_ratio("observer", text, bare, decide_ratio(ratios, OBSERVER_LIMIT, alpha=alpha))


def observer_warnings(checks: Iterable[SelfCheck]) -> list[str]:
    """That measuring was not shown to be cheap: balance and utilisation are those of steps that are being measured."""
    found = [check for check in checks if check.id == "observer" and check.outcome is not Outcome.PASS]
    return [
        f"recording spans was not shown to cost at most 1 %: {check.measured.point} % [{check.measured.lower}, "
        f"{check.measured.upper}]; balance and utilisation are those of recorded steps"
        for check in found
        if check.measured
    ]


def _of_ratio(name: str, text: str, metrics: Metrics, decision: Decision) -> SelfCheck:
    """A ratio of times as a difference in percent."""
    shift = replace(decision, point=decision.point - 1, lower=decision.lower - 1, upper=decision.upper - 1)
    method = f"t on {decision.samples} paired block log-ratios of median steps, wall"
    figure: Measured | None = figures(shift, metrics, method) if decision.samples else None
    why = "aa_failed" if name == "aa" and decision.outcome is Outcome.FAIL else decision.reason
    return SelfCheck(
        id=name, text=text, unit="%", outcome=decision.outcome, reason=why, measured=figure,
        detail=decision.note or f"{decision.samples} pairs of neighbouring blocks",
    )  # fmt: skip
