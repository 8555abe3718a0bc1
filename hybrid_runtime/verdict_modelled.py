"""Part of `verdict.json`: figures that no clock showed. Where ranks share cores, a replay stands beside a time claim.

A modelled figure never passes or fails: it says WOULD PASS, WOULD FAIL, or UNDECIDED where only a best case could be
replayed and that meets the target; the claim stays INCONCLUSIVE.
"""

from __future__ import annotations

from hybrid_runtime.predicted import RankTime
from hybrid_runtime.verdict_measured import Frozen
from hybrid_runtime.would import Would


class ModelledFigure(Frozen):
    """What a replay says of a claim, in the claim's unit; `exact` holds the point as a fraction.

    Attributes:
        method: whose costs were replayed.
        beside: the same figure against other plans, or of other plans, as text by what they are.
    """

    point: str
    exact: str
    would: Would
    method: str
    beside: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it


class ModelledStep(Frozen):
    """One plan that was replayed with costs of this run.

    Attributes:
        kind: "candidate", "declared baseline", "equal layers, 1f1b, m = p", "equal layers, 1f1b, same m",
            "this plan at tp 1".
        step_ns: from the barrier before a step to the end of its update; None where it cannot run.
        utilisation: compute-busy share of the least busy rank, percent as decimal text.
        latency_reduction, throughput_gain: of the candidate against it, percent as decimal text; None for the
            candidate itself.
        detail: what was assumed, or why it cannot run.
    """

    kind: str
    mesh: str
    schedule: str
    num_microbatches: int
    step_ns: int | None = None
    utilisation: str | None = None
    latency_reduction: str | None = None
    throughput_gain: str | None = None
    detail: str = ""


class ModelledRun(Frozen):
    """A replay of the run with its own measured costs, and of other plans with the same.

    Attributes:
        method: where the costs come from, and what they leave out.
        steps: the candidate first.
        ranks: where the candidate's step goes on each pipeline rank; the parts add up to its `step_ns`.
    """

    method: str
    steps: tuple[ModelledStep, ...]
    ranks: tuple[RankTime, ...]
