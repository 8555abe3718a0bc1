"""The words of a verdict about requests: latencies and phases as the texts that all reports share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hybrid_runtime.report.cells import UNKNOWN, bytes_text, duration_text, printable, ranges_text, rate_text, with_unit
from hybrid_runtime.verdict_served import LatencyRow, ServedSide

TITLE = "Requests"
LATENCY_HEADINGS = ("latency", "side", "median", "p90", "p99")
PHASE_HEADINGS = ("device", "ranks", "prefill", "share", "decode", "share", "busy", "busy, steady", "kv cache")
WORDS = {
    "first_token": "time to first token",
    "output_token": "time per token after it",
    "request": "time to whole answer",
}
PHASE_NOTE = (
    "Recorded rounds. Busy is compute over whole rounds, which utilisation is judged by; the steady state lasts from "
    "the last rank's first action to the first rank's last one."
)


def served_sentences(sides: Sequence[ServedSide]) -> list[str]:
    """How much was answered, a sentence for each side."""
    return [
        f"{side.role}: {side.requests} requests in {side.rounds} judged rounds, "
        f"{rate_text(float(side.requests_per_s))} requests/s"
        for side in sides
    ]


def latency_rows(sides: Sequence[ServedSide]) -> Iterator[tuple[str, ...]]:
    """A row for each latency and side under LATENCY_HEADINGS."""
    kinds = dict.fromkeys(row.latency for side in sides for row in side.latencies)
    for kind in kinds:
        for side in sides:
            rows = {row.quantile: row for row in side.latencies if row.latency == kind}
            if rows:
                yield (
                    printable(WORDS.get(kind, kind)),
                    side.role,
                    *(_latency_text(rows.get(name)) for name in QUANTILES),
                )


QUANTILES = ("median", "p90", "p99")


def _latency_text(row: LatencyRow | None) -> str:
    """ "18.3 ms [17, 21.6]"; or why it has no bounds, or is not known, and what it needs."""
    if row is None:
        return UNKNOWN
    if row.measured is None:
        return printable(row.detail or UNKNOWN)
    point, lower, upper = (
        duration_text(float(text)) for text in (row.measured.point, row.measured.lower, row.measured.upper)
    )
    if lower == upper:
        return point
    return f"{point}, {printable(row.detail)}" if row.detail else f"{point} [{lower}, {upper}]"


def phase_rows(sides: Sequence[ServedSide]) -> list[tuple[str, ...]]:
    """A row for each device of the candidate under PHASE_HEADINGS."""
    return [
        (
            printable(row.device),
            ranges_text(row.ranks),
            duration_text(row.prefill_ns / 1e9),
            with_unit(row.prefill_share, "%"),
            duration_text(row.decode_ns / 1e9),
            with_unit(row.decode_share, "%"),
            with_unit(row.busy, "%"),
            with_unit(row.steady_busy, "%"),
            bytes_text(row.kv_cache_bytes),
        )
        for side in sides
        for row in side.phases
    ]
