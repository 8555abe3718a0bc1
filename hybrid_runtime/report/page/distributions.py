"""Step times of two runs as boxes: median, quartiles, whiskers to 1.5 quartile ranges, and every step beyond them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hybrid_runtime.records import RankRecords
from hybrid_runtime.report.page.figure import Figure, Trace, View, rows_layout, thinned
from hybrid_runtime.report.run_data import Run, windows


def distributions(first: Run, second: Run) -> Figure | None:
    """A box per run, side and purpose of the measured steps; None without measured steps."""
    boxes = [
        (f"{run_name} run, {role}: {purpose}", role, times_ms)
        for role in ("candidate", "baseline")
        for run_name, run in (("first", first), ("second", second))
        for purpose, times_ms in _times_ms(run.ranks if role == "candidate" else run.baseline)
    ]
    if not boxes:
        return None
    layout = rows_layout([label for label, _, _ in boxes], "ms per step", row_px=44)
    layout["xaxis"]["rangemode"] = "tozero"
    traces = [_box(row, role, times_ms) for row, (_, role, times_ms) in enumerate(boxes)]
    notes = ["Warm-up left out. Box: quartiles and median; dots: steps beyond 1.5 quartile ranges."]
    return Figure("step-distributions", "Step times of the measured steps", [View(traces, layout)], notes)


def _times_ms(ranks: Sequence[RankRecords]) -> Iterator[tuple[str, list[float]]]:
    measured = [window for window in windows(ranks) if window.phase == "measure"]
    for purpose in dict.fromkeys(window.purpose for window in measured):
        times = [round(window.duration_ns / 1e6, 3) for window in measured if window.purpose == purpose]
        yield purpose, list(thinned(times))


def _box(row: int, role: str, times_ms: Sequence[float]) -> Trace:
    return {
        "type": "box",
        "orientation": "h",
        "name": role,
        "x": times_ms,
        "y": [row] * len(times_ms),
        "marker": {"color": role, "size": 4},
        "line": {"color": role},
        "fillcolor": "panel",
        "width": 0.6,
        "hoverinfo": "x",
    }
