"""Whether two sides did the same work: equal losses and equal gradient norms, before any speed-up counts.

Training is chaotic: a difference of 1e-7 in step 10 is one of 1e-3 in step 40 and of 1e-2 in step 100.
So the first steps must agree closely, all others on average.

Where requests are served, every round asks the same, so the answers of all rounds of both sides must be those of the
baseline's first round: the most likely token changes where two are equally likely but for rounding, and then the rest
of that answer, so a few may differ. In bfloat16 that happens within a few tokens; there the first tokens of answers are
compared, of which no more than every second may differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.serving.request_records import RequestRecord
from hybrid_runtime.verdict import Outcome, SelfCheck
from hybrid_runtime.verifier.metrics import Metrics
from hybrid_runtime.verifier.served_rounds import grouped
from hybrid_runtime.verifier.side import Side

EARLY_STEPS = 10


class Tolerance(NamedTuple):
    """Largest relative difference: of each of the first steps by dtype, and of the mean over all."""

    early: dict[str, float]
    mean: float


LOSS = Tolerance({"float32": 1e-4, "bfloat16": 2e-2}, 2e-2)
ANSWERS_APART = {"float32": Fraction(1, 10), "bfloat16": Fraction(1, 2)}  # share of answers, or of first tokens
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
    dtype = _dtype(candidate.side)
    losses = list(zip(candidate.losses(), other.losses(), strict=False))
    apart = numbers_apart("loss", losses, LOSS, dtype)
    if apart or candidate.side.plan.workload != "train":
        return apart
    norms = list(zip(candidate.gradient_norms(), other.gradient_norms(), strict=False))
    return numbers_apart("gradient norm", norms, GRADIENT_NORM, dtype)


def answers_apart(ours: Side, theirs: Side) -> str | None:
    """Why the answers of two sides to the same load do not show equal work; None if they do.

    The sides' deployments name the same model and load; compared is every request's answer in all rounds of both with
    that of the baseline's first round. What older records do not say is not compared.
    """
    lost = sum(not request.is_answered for side in (ours, theirs) for request in side.requests)
    if lost:
        return f"{lost} requests were refused or cancelled, and nobody knows how long their answers would have taken"
    if _tells_too_little(ours, theirs):
        return None
    for side, of, cause in (
        (ours, "the baseline's", "the sides do different work"),
        (theirs, "those of its first round", "the baseline does not repeat its work"),
    ):
        differing, count, what = _different_answers(side, theirs)
        if not count or differing > ANSWERS_APART[_dtype(ours)] * count:
            return f"{differing} of {count} {what} are not {of}; {cause}"
    return None


def _tells_too_little(ours: Side, theirs: Side) -> str | None:
    """Why answers cannot be compared, if they cannot: records of an older version hold no first tokens at all."""
    if _dtype(ours) != "bfloat16":
        return None
    for side, whose in ((ours, "candidate"), (theirs, "baseline")):
        if side.requests and all(request.first_token_id is None for request in side.requests):
            return f"the {whose}'s records are of an older version, without first tokens, so answers are not compared"
    return None


def _different_answers(side: Side, baseline: Side) -> tuple[int, int, str]:
    """How many answers of all rounds, or first tokens of them, are not those of the baseline's first round; how many
    there are; which of both it is."""
    whole = _dtype(side) != "bfloat16"
    first = next(iter(grouped(baseline.requests).values()), [])
    expected = {request.id: request for request in first}
    same = sum(_is_same(request, expected.get(request.id), whole=whole) for request in side.requests)
    return len(side.requests) - same, len(side.requests), "answers" if whole else "first tokens"


def _is_same(one: RequestRecord, other: RequestRecord | None, *, whole: bool) -> bool:
    if other is None:
        return False
    if whole:
        return one.digest == other.digest
    return one.first_token_id is not None and one.first_token_id == other.first_token_id


def _dtype(side: Side) -> str:
    model = side.deployment.model
    return model.dtype if model else "float32"


def _answers_check(ours: Side, theirs: Side) -> SelfCheck:
    apart, (differing, count, what) = answers_apart(ours, theirs), _different_answers(ours, theirs)
    unknown = None if apart else _tells_too_little(ours, theirs)
    return SelfCheck(
        id="numerics",
        text="candidate and baseline do the same work: equal answers to equal requests, but for a few that rounding "
        "turns",
        outcome=Outcome.FAIL if apart else Outcome.INCONCLUSIVE if unknown else Outcome.PASS,
        reason="loads_differ" if apart else "not_measured" if unknown else None,
        detail=apart or unknown or f"{count - differing} of {count} {what} are equal",
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
