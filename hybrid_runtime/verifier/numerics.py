"""Whether two sides did the same work: equal losses and equal gradient norms, before any speed-up counts.

Training is chaotic: a difference of 1e-7 in step 10 is one of 1e-3 in step 40 and of 1e-2 in step 100.
So the first steps must agree closely, all others on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from hybrid_runtime.verdict import Outcome, SelfCheck
from hybrid_runtime.verifier.metrics import Metrics

EARLY_STEPS = 10


class Tolerance(NamedTuple):
    """Largest relative difference: of each of the first steps by dtype, and of the mean over all."""

    early: dict[str, float]
    mean: float


LOSS = Tolerance({"float32": 1e-4, "bfloat16": 2e-2}, 2e-2)
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
    """Why losses or gradient norms do not show equal work; None if they do. Forward-only work has no gradients."""
    model = candidate.side.deployment.model
    dtype = model.dtype if model else "float32"
    losses = list(zip(candidate.losses(), other.losses(), strict=False))
    apart = numbers_apart("loss", losses, LOSS, dtype)
    if apart or candidate.side.plan.workload != "train":
        return apart
    norms = list(zip(candidate.gradient_norms(), other.gradient_norms(), strict=False))
    return numbers_apart("gradient norm", norms, GRADIENT_NORM, dtype)


def numerics_check(candidate: Metrics, other: Metrics) -> SelfCheck:
    """The gate as a row of the self-test."""
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
