"""Part of `verdict.json`: a measured figure, which claims, self-tests and rows of requests have alike."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Evidence = Literal["declared", "deterministic", "measured", "modelled"]


class Frozen(BaseModel):
    """A part of a verdict: nothing else is in it, and nobody changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(Frozen):
    """A measured figure with its interval, in the claim's unit, as decimal text; `exact` holds the point as a fraction.

    Attributes:
        lower, upper: the one-sided bounds that the decision used (FAIL looks at one, PASS at the other).
        method: how it was computed, e.g. "pairwise t over 12 batches of 10 steps, thread_cpu".
        samples: batches or block pairs that entered.
        hardware: what was measured: "cuda", "cpu" (every rank owns its cores) or "cpu-oversubscribed".
        purpose: of the steps it comes from: "trace" (with spans), "speed" (bare) or "planted" (self-test).
    """

    point: str
    exact: str
    lower: str
    upper: str
    confidence: str
    method: str
    samples: int
    hardware: Literal["cuda", "cpu", "cpu-oversubscribed"]
    evidence: Evidence
    purpose: str = "trace"
