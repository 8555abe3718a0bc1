"""Where each device's time went: one bar per device, the measured windows from end to end."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.report.cells import duration_text, printable
from hybrid_runtime.report.page.figure import HATCHED, Figure, Trace, View, device_label, plot_text, rows_layout
from hybrid_runtime.verdict import DeviceRow, Verdict

TIME_PARTS = {
    "compute": ("compute", "compute"),
    "exposed_communication": ("exposed communication", "communication"),
    "host": ("host", "host"),
    "bubble": ("bubble", "bubble"),
}


def time_parts(verdict: Verdict) -> Figure | None:
    """Compute, exposed communication, host and bubble per device; None for a verdict that does not hold them."""
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
