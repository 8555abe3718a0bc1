"""Whether two sides did the same work: equal losses and equal gradient norms, before any speed-up counts.

Training is chaotic: a difference of 1e-7 in step 10 is one of 1e-3 in step 40 and of 1e-2 in step 100.
So the first steps must agree closely, all others on average.

Where requests are served, their answers must agree: the most likely token changes where two are equally likely but for
rounding, and then the rest of that answer, so a few may differ; in bfloat16 many may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.verdict import Outcome, SelfCheck
from hybrid_runtime.verifier.metrics import Metrics
from hybrid_runtime.verifier.side import Side

EARLY_STEPS = 10


class Tolerance(NamedTuple):
    """Largest relative difference: of each of the first steps by dtype, and of the mean over all."""

    early: dict[str, float]
    mean: float


LOSS = Tolerance({"float32": 1e-4, "bfloat16": 2e-2}, 2e-2)
ANSWERS_APART = {"float32": Fraction(1, 10), "bfloat16": Fraction(1)}  # share of requests with another answer
GRADIENT_NORM = Tolerance({"float32": 1e-3, "bfloat16": 1e-1}, 1e-1)

Pairs = Sequence[tuple[str | None, str | None]]


def numbers_apart(what: str, pairs: Pairs, tolerance: Tolerance, dtype: str) -> str | None:
    """Why the (candidate, baseline) figures of the common steps do not show equal work; None if they do."""
    numbers: list[tuple[float, float]] = []
    for step, (ours, theirs) in enumerate(pairs):
        if ours is None or theirs is None:
            return f"step {step}: a side recorded no {what}, so equal work is not shown"
        numbers.append((float(ours), float(theirs)))
        allowed = tolerance.early[dtype] if step < EARLY_STEPS else math.inf
        if not (all(map(math.isfinite, numbers[-1])) and math.isclose(*numbers[-1], rel_tol=allowed)):
            return f"step {step}: {what} {ours} against the baseline's {theirs}; the sides do different work"
    if not numbers:
        return "the sides have no step in common"
    ours_mean, theirs_mean = (math.fsum(column) / len(numbers) for column in zip(*numbers, strict=True))
    if not math.isclose(ours_mean, theirs_mean, rel_tol=tolerance.mean):
        return f"mean {what} {ours_mean:.4f} against the baseline's {theirs_mean:.4f}; the sides do different work"
    return None


def work_apart(candidate: Metrics, other: Metrics) -> str | None:
    """Why losses or gradient norms, or answers, do not show equal work; None if they do. Forward-only work has no
    gradients."""
    if candidate.side.deployment.serves:
        return answers_apart(candidate.side, other.side)
    model = candidate.side.deployment.model
    dtype = model.dtype if model else "float32"
    losses = list(zip(candidate.losses(), other.losses(), strict=False))
    apart = numbers_apart("loss", losses, LOSS, dtype)
    if apart or candidate.side.plan.workload != "train":
        return apart
    norms = list(zip(candidate.gradient_norms(), other.gradient_norms(), strict=False))
    return numbers_apart("gradient norm", norms, GRADIENT_NORM, dtype)


def answers_apart(ours: Side, theirs: Side) -> str | None:
    """Why the answers of two sides to the same load do not show equal work; None if they do.

    The sides' deployments name the same model and load; compared is every request's answer in the sides' first rounds.
    """
    differing, count = _different_answers(ours, theirs)
    dtype = ours.deployment.model.dtype if ours.deployment.model else "float32"
    if differing <= ANSWERS_APART[dtype] * count:
        return None
    return f"{differing} of {count} requests were answered otherwise than by the baseline; the sides do different work"


def _different_answers(ours: Side, theirs: Side) -> tuple[int, int]:
    """How many of the requests were answered otherwise, and how many there are."""
    answers = [{request.id: request.digest for request in reversed(side.requests)} for side in (ours, theirs)]
    return sum(answers[1].get(name) != digest for name, digest in answers[0].items()), len(answers[0])


def _answers_check(ours: Side, theirs: Side) -> SelfCheck:
    apart, (differing, count) = answers_apart(ours, theirs), _different_answers(ours, theirs)
    return SelfCheck(
        id="numerics",
        text="candidate and baseline do the same work: equal answers to equal requests, but for a few that rounding "
        "turns",
        outcome=Outcome.FAIL if apart else Outcome.PASS,
        reason="loads_differ" if apart else None,
        detail=apart or f"{count - differing} of {count} requests have equal answers",
    )


def numerics_check(candidate: Metrics, other: Metrics) -> SelfCheck:
    """The gate as a row of the self-test."""
    if candidate.side.deployment.serves:
        return _answers_check(candidate.side, other.side)
    apart = work_apart(candidate, other)
    norms = " and gradient norms" if candidate.side.plan.workload == "train" else ""
    common = min(len(candidate.losses()), len(other.losses()))
    return SelfCheck(
        id="numerics",
        text=f"candidate and baseline do the same work: equal losses{norms} in the first {EARLY_STEPS} steps, and on "
        "average over all",
        outcome=Outcome.FAIL if apart else Outcome.PASS,
        reason="loads_differ" if apart else None,
        detail=apart or f"{common} common steps agree",
    )
