"""Each device's share of compute and of peak memory, beside the target band, with the interval of the share."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.report.page.figure import Figure, Layout, Trace, View, device_label, number, plot_text, rows_layout
from hybrid_runtime.verdict import Claim, DeviceRow, Verdict


def compute_shares(verdict: Verdict) -> Figure | None:
    """Shares of compute, and of the counted FLOPs; None with fewer than two devices."""
    rows = verdict.devices
    shares = [number(row.time_share) for row in rows]
    bounds = [_bounds(row) for row in rows]
    return _shares(
        "compute-shares", "Share of compute per device", "compute", rows, shares, bounds,
        [number(row.work_share) for row in rows], _claim(verdict, "time_share_range"),
    )  # fmt: skip


def memory_shares(verdict: Verdict) -> Figure | None:
    """Shares of peak memory; None with fewer than two devices or without memory."""
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
    limit = number(claim.threshold) if claim else None
    layout = rows_layout([device_label(row) for row in rows], "% of all devices' total")
    layout["shapes"] = [_equal_line(equal)]
    notes = [f"Bars begin at an equal share, {equal:.2f} %."]
    reach = [equal, *known, *(end for bound in bounds if bound for end in bound), *(one for one in work if one)]
    if limit is not None:
        middle = (min(known) + max(known)) / 2
        reach += [middle - limit / 2, middle + limit / 2]
        layout["shapes"].append(_band(middle, limit))
        notes.append(f"Shaded: {limit:g} pp around their middle; the target is that every bar ends in there.")
    room = (max(reach) - min(reach)) / 10 or 1
    layout["xaxis"]["range"] = [min(reach) - room, max(reach) + room]
    traces = [_share_bars(colour, known, equal), _share_ends(colour, rows, known, bounds)]
    if any(bounds):
        notes.append("Whiskers: interval of each share.")
    if any(share is not None for share in work):
        traces.append(_work_marks(rows, work))
        notes.append("Diamonds: share of the counted FLOPs.")
    return Figure(id, title, [View(traces, layout)], notes)


def _share_bars(colour: str, shares: Sequence[float], equal: float) -> Trace:
    return {
        "type": "bar",
        "orientation": "h",
        "name": "share",
        "base": [equal] * len(shares),
        "x": [share - equal for share in shares],
        "y": list(range(len(shares))),
        "marker": {"color": colour, "opacity": 0.75},
        "hoverinfo": "skip",
    }


def _share_ends(
    colour: str, rows: Sequence[DeviceRow], shares: Sequence[float], bounds: Sequence[tuple[float, float] | None]
) -> Trace:
    """A dot at each bar's end: an equal share is seen too; whiskers where there are intervals."""
    pairs = [bound or (share, share) for bound, share in zip(bounds, shares)]
    whiskers = {
        "type": "data",
        "symmetric": False,
        "array": [upper - share for (_, upper), share in zip(pairs, shares)],
        "arrayminus": [share - lower for (lower, _), share in zip(pairs, shares)],
        "color": "ink",
        "thickness": 1.5,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "share",
        "showlegend": False,
        "x": list(shares),
        "y": list(range(len(rows))),
        "marker": {"size": 9, "color": colour},
        "hovertext": [f"{plot_text(row.device)}<br>{share:g} %" for row, share in zip(rows, shares)],
        "hoverinfo": "text",
    } | ({"error_x": whiskers} if any(bounds) else {})


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


def _equal_line(equal: float) -> Layout:
    line = {"color": "muted", "width": 1}
    return {"type": "line", "yref": "paper", "x0": equal, "x1": equal, "y0": 0, "y1": 1, "line": line}


def _band(middle: float, limit: float) -> Layout:
    return {
        "type": "rect",
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
