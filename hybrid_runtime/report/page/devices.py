"""Figures with a row per device: shares beside the target band, where the time went, what the memory holds."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.report.cells import bytes_text, duration_text, printable
from hybrid_runtime.report.page.figure import (
    HATCHED,
    Figure,
    Layout,
    Trace,
    View,
    device_label,
    number,
    plot_text,
    rows_layout,
)
from hybrid_runtime.report.run_data import Run
from hybrid_runtime.verdict import Claim, DeviceRow, Verdict

TIME_PARTS = {
    "compute": ("compute", "compute"),
    "exposed_communication": ("exposed communication", "communication"),
    "host": ("host", "host"),
    "bubble": ("bubble", "bubble"),
}
_MEMORY_COLOURS = {
    "parameters": "parameters",
    "gradients": "weight-gradient",
    "optimizer": "optimizer",
    "activations_peak": "forward",
    "buffers_peak": "communication",
}
_MIB = 1024**2
_CAPACITY_SHOWN_UP_TO = 4  # times the largest bar: a line farther away would press the bars flat


def device_figures(run: Run) -> list[Figure]:
    """All figures that have something to show."""
    rows = run.verdict.devices
    if not rows:
        return []
    found = [_compute_shares(run.verdict), _memory_shares(run.verdict), _time_parts(run.verdict), _memory(run)]
    return [figure for figure in found if figure is not None]


def _compute_shares(verdict: Verdict) -> Figure | None:
    rows = verdict.devices
    shares = [number(row.time_share) for row in rows]
    bounds = [_bounds(row) for row in rows]
    return _shares(
        "compute-shares", "Share of compute per device", "compute", rows, shares, bounds,
        [number(row.work_share) for row in rows], _claim(verdict, "time_share_range"),
    )  # fmt: skip


def _memory_shares(verdict: Verdict) -> Figure | None:
    rows = verdict.devices
    shares = [number(row.memory_share) for row in rows]
    return _shares(
        "memory-shares", "Share of peak memory per device", "parameters", rows, shares, [None] * len(rows),
        [None] * len(rows), _claim(verdict, "alloc_peak_share_range"),
    )  # fmt: skip


def _claim(verdict: Verdict, metric: str) -> Claim | None:
    return next((claim for claim in verdict.claims if claim.metric == metric), None)


def _bounds(row: DeviceRow) -> tuple[float, float] | None:
    lower, upper = map(number, row.time_share_bounds or (None, None))
    return None if lower is None or upper is None else (lower, upper)


def _shares(
    id: str,
    title: str,
    colour: str,
    rows: Sequence[DeviceRow],
    shares: Sequence[float | None],
    bounds: Sequence[tuple[float, float] | None],
    work: Sequence[float | None],
    claim: Claim | None,
) -> Figure | None:
    """Bars from the equal share to each device's share: what differs is seen, whatever the number of devices."""
    known = [share for share in shares if share is not None]
    if len(known) < len(rows) or len(rows) < 2:
        return None
    equal = 100 / len(rows)
    layout = rows_layout([device_label(row) for row in rows], "% of all devices' total")
    notes = [f"Bars begin at an equal share, {equal:.2f} %."]
    limit = number(claim.threshold) if claim else None
    if limit is not None:
        layout |= _band((min(known) + max(known)) / 2, limit)
        notes.append(f"Shaded: a band {limit:g} pp wide, the target; all bars end inside it, or the range is larger.")
    traces = [_share_bars(colour, rows, known, bounds, equal)]
    if any(bounds):
        notes.append("Whiskers: interval of each share.")
    if any(share is not None for share in work):
        traces.append(_work_marks(rows, work))
        notes.append("Diamonds: share of the counted FLOPs.")
    return Figure(id, title, [View(traces, layout)], notes)


def _share_bars(
    colour: str,
    rows: Sequence[DeviceRow],
    shares: Sequence[float],
    bounds: Sequence[tuple[float, float] | None],
    equal: float,
) -> Trace:
    bars: Trace = {
        "type": "bar",
        "orientation": "h",
        "name": "share",
        "base": [equal] * len(rows),
        "x": [share - equal for share in shares],
        "y": list(range(len(rows))),
        "marker": {"color": colour},
        "hovertext": [f"{plot_text(row.device)}<br>{share:g} %" for row, share in zip(rows, shares)],
        "hoverinfo": "text",
    }
    if any(bounds):
        pairs = [bound or (share, share) for bound, share in zip(bounds, shares)]
        bars["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [upper - share for (_, upper), share in zip(pairs, shares)],
            "arrayminus": [share - lower for (lower, _), share in zip(pairs, shares)],
            "color": "ink",
            "thickness": 1.5,
        }
    return bars


def _work_marks(rows: Sequence[DeviceRow], work: Sequence[float | None]) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "FLOP share",
        "x": list(work),
        "y": list(range(len(rows))),
        "marker": {"symbol": "diamond-open", "size": 9, "color": "ink", "line": {"width": 1.5, "color": "ink"}},
        "hovertext": [f"{plot_text(row.device)}<br>FLOPs {plot_text(row.work_share)} %" for row in rows],
        "hoverinfo": "text",
    }


def _band(middle: float, limit: float) -> Layout:
    band = {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": middle - limit / 2,
        "x1": middle + limit / 2,
        "y0": 0,
        "y1": 1,
        "layer": "below",
        "fillcolor": "pass",
        "opacity": 0.16,
        "line": {"width": 0},
    }
    return {"shapes": [band]}


def _time_parts(verdict: Verdict) -> Figure | None:
    rows = [row for row in verdict.devices if row.time_parts]
    if not rows:
        return None
    parts = list(dict.fromkeys([*TIME_PARTS, *(part for row in rows for part in row.time_parts)]))
    traces = [_part_bars(part, rows) for part in parts if any(row.time_parts.get(part) for row in rows)]
    layout = rows_layout([device_label(row) for row in rows], "% of the measured steps, wall clock")
    layout |= {"barmode": "stack", "barnorm": "percent"}
    layout["xaxis"]["range"] = [0, 100]
    notes = ["Exposed communication: collectives that no compute hides. Bubble: waiting for another stage, or idle."]
    if any(side.hardware == "cpu-oversubscribed" for side in verdict.sides):
        notes.append("Ranks share cores here, so a part also holds time in which another rank had the core.")
    return Figure("time-parts", "Where each device's time went", [View(traces, layout)], notes)


def _part_bars(part: str, rows: Sequence[DeviceRow]) -> Trace:
    words, colour = TIME_PARTS.get(part, (part.replace("_", " "), "muted"))
    times = [row.time_parts.get(part, 0) for row in rows]
    shown = (f"{plot_text(words)}: {duration_text(time / 1e9)}" for time in times)
    return {
        "type": "bar",
        "orientation": "h",
        "name": printable(words),
        "x": [time / 1e9 for time in times],
        "y": list(range(len(rows))),
        "marker": {"color": colour} | (HATCHED if part == "bubble" else {}),
        "hovertext": [f"{plot_text(row.device)}<br>{words}" for row, words in zip(rows, shown)],
        "hoverinfo": "text",
    }


def _memory(run: Run) -> Figure | None:
    rows = [row for row in run.verdict.devices if row.memory_parts]
    if not rows:
        return None
    parts = list(dict.fromkeys(part for row in rows for part in row.memory_parts))
    traces = [_memory_bars(part, rows) for part in parts if any(row.memory_parts.get(part) for row in rows)]
    peaks = [row for row in rows if row.memory_bytes is not None]
    if peaks:
        traces.append(_peak_marks(rows))
    layout = rows_layout([device_label(row) for row in rows], "MiB")
    layout["barmode"] = "stack"
    largest = max((sum(row.memory_parts.values()) for row in rows), default=0)
    line, words = _capacity(_capacity_bytes(run), largest)
    notes = ["Peaks of the parts need not fall together; the mark is the peak of their sum.", words]
    return Figure("memory", "Memory per device by kind", [View(traces, layout | line)], notes)


def _memory_bars(part: str, rows: Sequence[DeviceRow]) -> Trace:
    words = part.removesuffix("_peak").replace("_", " ")
    sizes = [row.memory_parts.get(part, 0) for row in rows]
    return {
        "type": "bar",
        "orientation": "h",
        "name": printable(words),
        "x": [size / _MIB for size in sizes],
        "y": list(range(len(rows))),
        "marker": {"color": _MEMORY_COLOURS.get(part, "muted")},
        "hovertext": [f"{plot_text(row.device)}<br>{plot_text(words)}: {bytes_text(size)}"
                      for row, size in zip(rows, sizes)],
        "hoverinfo": "text",
    }  # fmt: skip


def _peak_marks(rows: Sequence[DeviceRow]) -> Trace:
    sizes = [row.memory_bytes for row in rows]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "peak of the sum",
        "x": [None if size is None else size / _MIB for size in sizes],
        "y": list(range(len(rows))),
        "marker": {"symbol": "line-ns-open", "size": 18, "color": "ink", "line": {"width": 2.5, "color": "ink"}},
        "hovertext": [f"peak: {bytes_text(size)}" if size is not None else "" for size in sizes],
        "hoverinfo": "text",
    }


def _capacity_bytes(run: Run) -> int | None:
    """The smallest capacity that a rank's device reports."""
    return min((rank.header.device.total_bytes for rank in run.ranks if rank.header.device.total_bytes), default=None)


def _capacity(capacity_bytes: int | None, largest_bytes: int) -> tuple[Layout, str]:
    if capacity_bytes is None:
        return {}, "The ranks' devices report no capacity of their own."
    if capacity_bytes > _CAPACITY_SHOWN_UP_TO * largest_bytes:
        return {}, f"Capacity {bytes_text(capacity_bytes)} per device lies far to the right of this picture."
    line = {"type": "line", "yref": "paper", "x0": capacity_bytes / _MIB, "x1": capacity_bytes / _MIB, "y0": 0, "y1": 1,
            "line": {"color": "fail", "width": 2, "dash": "dash"}}  # fmt: skip
    return {"shapes": [line]}, f"Dashed: capacity, {bytes_text(capacity_bytes)} per device."
