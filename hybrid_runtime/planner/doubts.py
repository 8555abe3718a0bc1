"""What speaks against a chosen plan, in words: a simpler one may be as fast, or a step hardly computes."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from hybrid_runtime.predicted import PredictedBaseline, PredictedStep, TimeInterval

MOSTLY = Fraction(1, 2)  # of a step


def doubts(predicted: PredictedStep) -> list[str]:
    """One line each; none where the plan is clearly better than what it was compared with."""
    return [*_simpler(predicted), *_overhead(predicted)]


def _simpler(predicted: PredictedStep) -> Iterator[str]:
    """Plans that nobody needs a planner for, which the prediction's own interval does not tell from the chosen one."""
    own = predicted.step_time
    known = [(one, one.step_time) for one in predicted.baselines if one.step_time is not None]
    faster = [pair for pair in known if pair[1].p50_ns < own.p50_ns]
    close = [pair for pair in known if own.p50_ns <= pair[1].p50_ns <= own.p90_ns]
    if faster:
        yield f"doubt: {_named(faster)} would be faster; if what search.vary leaves fixed need not be, let it vary"
    if close:
        yield f"doubt: {_named(close)} lies within this prediction's interval: it may be as fast, and is simpler"


def _named(found: list[tuple[PredictedBaseline, TimeInterval]]) -> str:
    return " and ".join(f"{one.kind} on {one.mesh} ({time.p50_ns / 1e6:.4g} ms)" for one, time in found)


def _overhead(predicted: PredictedStep) -> Iterator[str]:
    step_ns = max(1, predicted.step_time.p50_ns)
    rank = min(predicted.ranks, key=lambda rank: rank.time.compute_ns)
    computed = Fraction(rank.time.compute_ns + rank.time.optimizer_ns, step_ns)
    if computed < MOSTLY:
        yield (
            f"doubt: pp rank {rank.pp_rank} computes for {float(100 * computed):.1f} % of the step only; calls, "
            "messages and waits take the rest: use fewer ranks, or larger microbatches"
        )
