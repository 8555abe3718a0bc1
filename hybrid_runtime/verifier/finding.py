"""From a decision to a row of the verdict: the shared last step of all claims."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Literal, NamedTuple

from hybrid_runtime.exact import decimal_text, exact_text
from hybrid_runtime.verdict import Claim, Evidence, Measured, Outcome, Reason
from hybrid_runtime.verifier.decision import Decision
from hybrid_runtime.verifier.metrics import Metrics
from hybrid_runtime.verifier.trust import Blocker


class Finding(NamedTuple):
    """How a claim came out, and the words and figures that say why."""

    outcome: Outcome
    detail: str
    reason: Reason | None = None
    measured: Measured | None = None
    steps_needed: int | None = None


def undecided(reason: Reason, detail: str) -> Finding:
    """INCONCLUSIVE without figures."""
    return Finding(Outcome.INCONCLUSIVE, detail, reason)


def found(decision: Decision, measured: Measured, detail: str) -> Finding:
    """A decision with its figures; its note joins the detail."""
    detail = sentences(detail, decision.note)
    return Finding(decision.outcome, detail, decision.reason, measured, decision.more_needed)


def blocked(decision: Decision, blocker: Blocker | None) -> Decision:
    """The decision, or its figures without a judgement if something forbids to believe the clock."""
    return decision.because(*blocker) if blocker else decision


def sentences(*parts: str) -> str:
    """Parts of a detail joined by semicolons, empty ones left out."""
    return "; ".join(part for part in parts if part)


def figures(
    decision: Decision,
    metrics: Metrics,
    method: str,
    evidence: Evidence = "measured",
    scale: int = 100,
) -> Measured:
    """A decision's figures in the claim's unit, of which `scale` make 1."""
    return Measured(
        point=decimal_text(decision.point * scale),
        exact=exact_text(decision.point * scale),
        lower=decimal_text(decision.lower * scale),
        upper=decimal_text(decision.upper * scale),
        confidence="exact" if evidence == "deterministic" else f"{1 - decision.alpha:.4g}",
        method=method,
        samples=decision.samples,
        hardware=metrics.hardware,
        evidence=evidence,
        purpose=metrics.purpose,
    )


def claim(
    name: str,
    metric: str,
    promise: tuple[Literal["<=", ">="], Decimal | Fraction | int, str],
    text: str,
    finding: Finding,
    declared: str | None = None,
) -> Claim:
    """One row.

    Args:
        promise: operator, threshold and unit.
        declared: what somebody wrote down for the same quantity; shown, never used.
    """
    op, threshold, unit = promise
    return Claim(
        id=name,
        text=text,
        metric=metric,
        unit=unit,
        op=op,
        threshold=f"{threshold:f}" if isinstance(threshold, Decimal) else decimal_text(Fraction(threshold)),
        declared=declared,
        measured=finding.measured,
        outcome=finding.outcome,
        reason=finding.reason,
        steps_needed=finding.steps_needed,
        detail=finding.detail,
    )
