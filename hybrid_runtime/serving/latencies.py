"""How long requests wait: three latencies of an answer, and their quantiles over the requests of a round.

arrival ------- first token -- token -- token -- last token
|  first_token  |     output_token: mean gap     |
|                    request                     |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

from hybrid_runtime.predicted_serving import LatencyKind, LatencyTimes
from hybrid_runtime.serving.requests import Answer

Time = TypeVar("Time", int, Fraction)
QUANTILES = {"median": Fraction(1, 2), "p90": Fraction(9, 10), "p99": Fraction(99, 100)}


def first_token_ns(answer: Answer) -> int | None:
    """Arrival to first token; None where there is none."""
    return None if answer.first_token_ns is None else answer.first_token_ns - answer.arrival_ns


def output_token_ns(answer: Answer) -> int | None:
    """Mean time between tokens after the first one; None where there are fewer than two."""
    if answer.first_token_ns is None or len(answer.tokens) < 2:
        return None
    return (answer.ended_ns - answer.first_token_ns) // (len(answer.tokens) - 1)


def request_ns(answer: Answer) -> int | None:
    """Arrival to the whole answer; None where it was refused or cancelled."""
    return answer.ended_ns - answer.arrival_ns if answer.end in ("stop", "length") else None


LATENCIES: Mapping[LatencyKind, Callable[[Answer], int | None]] = {
    "request": request_ns,
    "first_token": first_token_ns,
    "output_token": output_token_ns,
}


def latency_times(answers: Iterable[Answer], kind: LatencyKind) -> LatencyTimes | None:
    """Quantiles of a latency over answers that have it; None if none has."""
    times = sorted(time for answer in answers if (time := LATENCIES[kind](answer)) is not None)
    if not times:
        return None
    return LatencyTimes(**{f"{name}_ns": quantile(times, part) for name, part in QUANTILES.items()})


def quantile(ordered: Sequence[Time], part: Fraction) -> Time:
    """The smallest value that at least this part of all does not exceed (nearest rank)."""
    return ordered[max(0, -(-len(ordered) * part.numerator // part.denominator) - 1)]
