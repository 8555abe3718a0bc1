"""How long requests wait: three latencies of an answer, and their quantiles over the requests of a round.

arrival ------- first token -- token -- token -- last token
|  first_token  |     output_token: mean gap     |
|                    request                     |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TypeVar

from hybrid_runtime.predicted_serving import LatencyKind, LatencyTimes
from hybrid_runtime.serving.requests import Answer, End

Time = TypeVar("Time", int, Fraction)
QUANTILES = {"median": Fraction(1, 2), "p90": Fraction(9, 10), "p99": Fraction(99, 100)}


LATENCIES: tuple[LatencyKind, ...] = ("first_token", "output_token", "request")


def latency_ns(
    kind: LatencyKind, *, arrival_ns: int, first_token_ns: int | None, ended_ns: int, num_tokens: int, end: End
) -> Fraction | None:
    """One of an answer's latencies; None where it has none: it was not answered, or has one token only."""
    if end not in ("stop", "length") or first_token_ns is None:
        return None
    match kind:
        case "first_token":
            return Fraction(first_token_ns - arrival_ns)
        case "output_token":
            return Fraction(ended_ns - first_token_ns, num_tokens - 1) if num_tokens > 1 else None
        case "request":
            return Fraction(ended_ns - arrival_ns)


def latency_of(answer: Answer, kind: LatencyKind) -> Fraction | None:
    """`latency_ns` of an answer."""
    return latency_ns(
        kind,
        arrival_ns=answer.arrival_ns,
        first_token_ns=answer.first_token_ns,
        ended_ns=answer.ended_ns,
        num_tokens=len(answer.tokens),
        end=answer.end,
    )


def latency_times(answers: Iterable[Answer], kind: LatencyKind) -> LatencyTimes | None:
    """Quantiles of a latency over answers that have it; None if none has."""
    times = sorted(time for answer in answers if (time := latency_of(answer, kind)) is not None)
    if not times:
        return None
    return LatencyTimes(**{f"{name}_ns": int(quantile(times, part)) for name, part in QUANTILES.items()})


def quantile(ordered: Sequence[Time], part: Fraction) -> Time:
    """The smallest value that at least this part of all does not exceed (nearest rank)."""
    return ordered[max(0, -(-len(ordered) * part.numerator // part.denominator) - 1)]
