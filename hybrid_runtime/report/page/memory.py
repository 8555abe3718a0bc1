"""What each device's memory holds, by kind, with the peak of the sum and the capacity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hybrid_runtime.report.cells import bytes_text, printable
from hybrid_runtime.report.page.figure import Figure, Layout, Trace, View, device_label, plot_text, rows_layout
from hybrid_runtime.report.run_data import Run
from hybrid_runtime.verdict import DeviceRow

_COLOURS = {
    "parameters": "parameters",
    "gradients": "weight-gradient",
    "optimizer": "optimizer",
    "kv_cache": "decode",
    "activations_peak": "forward",
    "buffers_peak": "communication",
}
_CAPACITY_SHOWN_UP_TO = 4  # times the largest bar: a line farther away would press the bars flat


class _Unit(NamedTuple):
    """A unit of memory."""

    name: str
    size_bytes: int


_UNITS = (_Unit("GiB", 1024**3), _Unit("MiB", 1024**2), _Unit("KiB", 1024), _Unit("bytes", 1))


def memory(run: Run) -> Figure | None:
    """Parameters, gradients, optimizer, activations and buffers per device; None where memory was not recorded."""
    rows = [row for row in run.verdict.devices if row.memory_parts]
    if not rows:
        return None
    parts = list(dict.fromkeys(part for row in rows for part in row.memory_parts))
    largest = max(sum(row.memory_parts.values()) for row in rows)
    unit = _unit(largest)
    traces = [_memory_bars(part, rows, unit) for part in parts if any(row.memory_parts.get(part) for row in rows)]
    if any(row.memory_bytes is not None for row in rows):
        traces.append(_peak_marks(rows, unit))
    layout = rows_layout([device_label(row) for row in rows], unit.name)
    layout["barmode"] = "stack"
    line, words = _capacity(_capacity_bytes(run), largest, unit)
    notes = ["Peaks of the parts need not fall together; the mark is the peak of their sum.", words]
    return Figure("memory", "Memory per device by kind", [View(traces, layout | line)], notes)


def _unit(largest_bytes: int) -> _Unit:
    """The largest unit of which there is at least one."""
    return next((unit for unit in _UNITS if largest_bytes >= unit.size_bytes), _UNITS[-1])


def _memory_bars(part: str, rows: Sequence[DeviceRow], unit: _Unit) -> Trace:
    words = part.removesuffix("_peak").replace("_", " ")
    sizes = [row.memory_parts.get(part, 0) for row in rows]
    shown = (f"{plot_text(words)}: {bytes_text(size)}" for size in sizes)
    return {
        "type": "bar",
        "orientation": "h",
        "name": printable(words),
        "x": [size / unit.size_bytes for size in sizes],
        "y": list(range(len(rows))),
        "marker": {"color": _COLOURS.get(part, "muted")},
        "hovertext": [f"{plot_text(row.device)}<br>{words}" for row, words in zip(rows, shown)],
        "hoverinfo": "text",
    }


def _peak_marks(rows: Sequence[DeviceRow], unit: _Unit) -> Trace:
    sizes = [row.memory_bytes for row in rows]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "peak of the sum",
        "x": [None if size is None else size / unit.size_bytes for size in sizes],
        "y": list(range(len(rows))),
        "marker": {"symbol": "line-ns-open", "size": 18, "color": "ink", "line": {"width": 2.5, "color": "ink"}},
        "hovertext": [f"peak: {bytes_text(size)}" if size is not None else "" for size in sizes],
        "hoverinfo": "text",
    }


def _capacity_bytes(run: Run) -> int | None:
    """The smallest capacity that a rank's device reports."""
    return min((rank.header.device.total_bytes for rank in run.ranks if rank.header.device.total_bytes), default=None)


def _capacity(capacity_bytes: int | None, largest_bytes: int, unit: _Unit) -> tuple[Layout, str]:
    if capacity_bytes is None:
        return {}, "The ranks' devices report no capacity of their own."
    if capacity_bytes > _CAPACITY_SHOWN_UP_TO * largest_bytes:
        return {}, f"Capacity {bytes_text(capacity_bytes)} per device lies far to the right of this picture."
    end = capacity_bytes / unit.size_bytes
    line = {"color": "fail", "width": 2, "dash": "dash"}
    shape = {"type": "line", "yref": "paper", "x0": end, "x1": end, "y0": 0, "y1": 1, "line": line}
    return {"shapes": [shape]}, f"Dashed: capacity, {bytes_text(capacity_bytes)} per device."
