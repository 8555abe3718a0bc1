"""The step times in the order they were taken: warm-up, blocks of the two sides, outliers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from hybrid_runtime.records import SPEED, TRACE, RankRecords
from hybrid_runtime.report.cells import duration_text, printable
from hybrid_runtime.report.page.figure import MOST_POINTS, Figure, Layout, Trace, View, plot_text, thinned
from hybrid_runtime.report.run_data import Run, Window, windows

_SYMBOLS = {TRACE: "circle", SPEED: "diamond"}
_OTHER_SYMBOL = "cross"


def step_series(run: Run) -> Figure | None:
    """One mark per step of each side; None if there is no step."""
    sides = {"candidate": _of_the_model(run.ranks), "baseline": _of_the_model(run.baseline)}
    if not sides["candidate"]:
        return None
    base_ns = min(window.start_ns for side in sides.values() for window in side)
    flagged = {row.role: frozenset(row.steps) for row in run.verdict.outliers}
    traces = [trace for role, side in sides.items() if side for trace in _side_traces(role, side, base_ns)]
    marks = [_outlier_marks(role, sides[role], steps, base_ns) for role, steps in flagged.items() if steps]
    blocks = [_block_bands(role, side, base_ns) for role, side in sides.items() if side and run.baseline]
    return Figure(
        "steps", "Step times, in the order they were taken",
        [View([*blocks, *traces, *marks], _layout(sides))],
        _notes(sides, bool(flagged), run),
    )  # fmt: skip


def _of_the_model(ranks: Sequence[RankRecords]) -> list[Window]:
    """Without planted steps and those against other baselines, whose own steps are not drawn."""
    return [window for window in windows(ranks) if window.purpose in (TRACE, SPEED)]


def _side_traces(role: str, side: Sequence[Window], base_ns: int) -> Iterable[Trace]:
    warm = [window for window in side if window.phase == "warmup"]
    if warm:
        yield _marks(role, f"{role}, warm-up", warm, base_ns, "circle-open", 0.7)
    measured = [window for window in side if window.phase == "measure"]
    for purpose in dict.fromkeys(window.purpose for window in measured):
        some = [window for window in measured if window.purpose == purpose]
        what = {TRACE: "spans recorded", SPEED: "bare steps"}.get(purpose, purpose)
        yield _marks(role, f"{role}, {what}", some, base_ns, _SYMBOLS.get(purpose, _OTHER_SYMBOL), 1)


def _marks(
    role: str, name: str, some: Sequence[Window], base_ns: int, symbol: str, opacity: float, colour: str = ""
) -> Trace:
    shown = thinned(some)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": printable(name),
        "x": [_seconds(window.start_ns - base_ns) for window in shown],
        "y": [round(window.duration_ns / 1e6, 3) for window in shown],
        "marker": {"color": colour or role, "symbol": symbol, "size": 6, "opacity": opacity},
        "hovertext": [_hover(name, window) for window in shown],
        "hoverinfo": "text",
    }


def _outlier_marks(role: str, side: Sequence[Window], steps: frozenset[int], base_ns: int) -> Trace:
    some = [window for window in side if window.step in steps]
    marks = _marks(role, f"{role}, outlier", some, base_ns, "circle-open", 1, "fail")
    marks["marker"] |= {"size": 14, "line": {"width": 2, "color": "fail"}}
    return marks


def _hover(name: str, window: Window) -> str:
    return f"{plot_text(name)}<br>step {window.step}, block {window.block}: {duration_text(window.duration_ns / 1e9)}"


def _block_bands(role: str, side: Sequence[Window], base_ns: int) -> Trace:
    """One filled outline for all blocks of a side: as many shapes would make a large page slow."""
    x: list[float | None] = []
    y: list[float | None] = []
    measured = (window for window in side if window.phase == "measure")
    for _, group in groupby(measured, key=lambda window: (window.block, window.purpose)):
        block = list(group)
        start, end = (_seconds(time - base_ns) for time in (block[0].start_ns, block[-1].end_ns))
        x += [start, end, end, start, None]
        y += [0, 0, 1, 1, None]
    return {
        "type": "scatter",
        "mode": "none",
        "name": f"{role}'s turn",
        "x": x,
        "y": y,
        "yaxis": "y2",
        "fill": "toself",
        "fillcolor": role,
        "opacity": 0.13,
        "hoverinfo": "skip",
    }


def _layout(sides: dict[str, list[Window]]) -> Layout:
    times = sorted(window.duration_ns / 1e6 for side in sides.values() for window in side if window.phase == "measure")
    layout: Layout = {
        "height": 340,
        "hovermode": "closest",
        "xaxis": {"title": {"text": "s after the first step"}},
        "yaxis": {"title": {"text": "ms per step"}, "rangemode": "tozero"},
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    }
    if times:
        layout["yaxis"]["range"] = [0, times[-1] * 1.15]
    return layout


def _notes(sides: dict[str, list[Window]], judged: bool, run: Run) -> list[str]:
    notes = ["Hollow marks: warm-up, never judged; it may lie above the picture (double click shows all)."]
    if run.baseline:
        notes.append("Shaded: whose turn it was (blocks A B B A, so that a drift hits both).")
    if judged and not any(row.steps for row in run.verdict.outliers):
        notes.append("No step is an outlier (Tukey's outer fences).")
    for row in run.verdict.outliers:
        if row.steps:
            notes.append(
                f"{row.role}: {len(row.steps)} outliers (ringed; flagged, never dropped): mean {row.mean_step_s} s, "
                f"without them {row.mean_without_s} s, median {row.median_step_s} s."
            )
    if any(len(side) > MOST_POINTS for side in sides.values()):
        notes.append(f"At most {MOST_POINTS} steps of a kind are drawn, evenly picked; the records hold all.")
    return notes


def _seconds(time_ns: int) -> float:
    return round(time_ns / 1e9, 4)
