"""How long requests waited: for each latency the share of requests that waited no longer, of both sides.

share |        ____----   the curve crosses 50, 90 and 99 % at the quantiles of the table; a limit is a dashed line
      |   _/--
      |_/__________ s
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from hybrid_runtime.predicted_serving import LatencyKind
from hybrid_runtime.records import AGAINST, SPEED, TRACE, RankRecords
from hybrid_runtime.report.page.figure import Figure, Trace, View, thinned
from hybrid_runtime.report.run_data import Run
from hybrid_runtime.report.served_cells import WORDS
from hybrid_runtime.serving.latencies import LATENCIES, QUANTILES
from hybrid_runtime.serving.request_records import RequestRecord
from hybrid_runtime.verdict import Claim

_FAR = 3  # times the largest latency: a limit farther away would press the curves flat


def latencies(run: Run) -> Figure | None:
    """The distributions of every latency that requests have; None where no requests were served."""
    sides = [
        ("candidate", _judged(run.ranks, run.requests)),
        ("baseline", _judged(run.baseline, run.baseline_requests)),
    ]
    views = [view for kind in LATENCIES if (view := _view(kind, sides, run.verdict.claims)) is not None]
    if not views:
        return None
    notes = ["Every request of the judged rounds, warm-up left out. Dashed: what the deployment allows."]
    return Figure("latencies", "Latency of requests: share that waited no longer", views, notes)


def _judged(ranks: Sequence[RankRecords], requests: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Requests of the rounds that speed is judged by: bare ones, or recorded ones where there are no others."""
    if not ranks:
        return []
    for purpose in (SPEED, TRACE, AGAINST):
        steps = {step.step for step in ranks[0].measured(purpose)}
        if steps:
            return [request for request in requests if request.step in steps]
    return []


def _view(
    kind: LatencyKind, sides: Sequence[tuple[str, Sequence[RequestRecord]]], claims: Sequence[Claim]
) -> View | None:
    traces, largest_ms = [], 0.0
    for role, requests in sides:
        found = sorted(latency for request in requests if (latency := request.latency_ns(kind)) is not None)
        if found:
            traces.append(_curve(role, found))
            largest_ms = max(largest_ms, float(found[-1]) / 1e6)
    if not traces:
        return None
    limits = list(_limits(kind, claims))
    near = [limit["x"][0] for limit in limits if limit["x"][0] <= _FAR * largest_ms]
    layout = {
        "height": 340,
        "xaxis": {"title": {"text": "ms"}, "range": [0, 1.05 * max([largest_ms, *near])]},
        "yaxis": {"title": {"text": "% of requests"}, "range": [0, 101], "tickvals": [0, 25, 50, 75, 90, 99]},
        "hovermode": "closest",
    }
    return View([*traces, *limits], layout, WORDS[kind])


def _curve(role: str, ordered: Sequence[Fraction]) -> Trace:
    count = len(ordered)
    points = thinned(list(enumerate(ordered, start=1)))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{role}, {count} requests",
        "x": [round(float(latency) / 1e6, 4) for _, latency in points],
        "y": [round(100 * place / count, 2) for place, _ in points],
        "line": {"color": role, "shape": "hv", "width": 2},
        "hoverinfo": "x+y+name",
    }


def _limits(kind: LatencyKind, claims: Sequence[Claim]) -> Iterator[Trace]:
    """A dashed line down from its quantile for every limit of this latency."""
    for name, part in QUANTILES.items():
        claim = next((row for row in claims if row.id == f"{kind}_{name}"), None)
        if claim is not None:
            limit_ms = float(claim.threshold) * 1000
            yield {
                "type": "scatter",
                "mode": "lines",
                "name": f"{name} at most {claim.threshold} s",
                "x": [limit_ms, limit_ms],
                "y": [0, float(100 * part)],
                "line": {"color": claim.outcome.value.lower() if claim.outcome.value in ("PASS", "FAIL") else "open",
                         "dash": "dash", "width": 2},
                "hoverinfo": "name",
            }  # fmt: skip
