"""Measured figures as points with whiskers, those of one unit in one picture: the comparison beside its self-tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hybrid_runtime.report.cells import measured_text
from hybrid_runtime.report.page.figure import Figure, Layout, Trace, View, number, plot_text, rows_layout
from hybrid_runtime.verdict import Claim, SelfCheck, Verdict
from hybrid_runtime.verdict_measured import Measured


class Row(NamedTuple):
    """One figure; `colour` is a name of the palette."""

    label: str
    measured: Measured
    colour: str


def interval_figures(verdict: Verdict) -> list[Figure]:
    """A/B beside A/A and other baselines; planted imbalances beside the measured one. What is missing is left out."""
    found = [
        _figure("speed-intervals", "Step time against baselines, and against itself", *_speed(verdict)),
        _figure("planted-intervals", "Planted imbalances, found again", *_planted(verdict)),
    ]
    return [figure for figure in found if figure is not None]


def _speed(verdict: Verdict) -> tuple[list[Row], str, Claim | None]:
    claim = next((claim for claim in verdict.claims if claim.metric == "latency_reduction"), None)
    unit = claim.unit if claim else "%"
    rows = [Row("declared baseline (A/B)", claim.measured, "candidate")] if claim and claim.measured else []
    rows += [
        Row(f"{other.kind}, shown only", other.latency, "baseline")
        for other in verdict.other_baselines
        if other.latency
    ]
    rows += _checks(verdict, unit, lambda check: check.id == "aa", "the same plan twice (A/A)")
    return rows, unit, claim


def _planted(verdict: Verdict) -> tuple[list[Row], str, Claim | None]:
    claim = next((claim for claim in verdict.claims if claim.metric == "time_share_range"), None)
    unit = claim.unit if claim else "pp"
    planted = _checks(verdict, unit, lambda check: check.id.startswith("planted_"), "")
    own = [Row("the deployment", claim.measured, "compute")] if planted and claim and claim.measured else []
    return own + planted, unit, claim


def _checks(verdict: Verdict, unit: str, wanted: Callable[[SelfCheck], bool], label: str) -> list[Row]:
    return [
        Row(label or _words(check), check.measured, "muted")
        for check in verdict.self_test
        if check.measured is not None and check.unit == unit and wanted(check)
    ]


def _words(check: SelfCheck) -> str:
    return f"{check.id.partition('_')[2]} {check.unit} planted"


def _figure(id: str, title: str, rows: Sequence[Row], unit: str, claim: Claim | None) -> Figure | None:
    drawn = [row for row in rows if number(row.measured.point) is not None]
    if len(drawn) < 2:
        return None
    layout = rows_layout([row.label for row in drawn], unit)
    notes = ["Whiskers: the interval that the decision used."]
    limit = number(claim.threshold) if claim else None
    if limit is not None:
        layout |= _limit(limit)
        notes.append(f"Dashed: the target, {limit:g} {unit}.")
    return Figure(id, title, [View([_points(drawn, unit)], layout)], notes)


def _points(rows: Sequence[Row], unit: str) -> Trace:
    points = [number(row.measured.point) or 0.0 for row in rows]
    lower = [number(row.measured.lower) for row in rows]
    upper = [number(row.measured.upper) for row in rows]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "measured",
        "showlegend": False,
        "x": points,
        "y": list(range(len(rows))),
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [0 if end is None else end - point for end, point in zip(upper, points)],
            "arrayminus": [0 if end is None else point - end for end, point in zip(lower, points)],
            "color": "ink",
            "thickness": 1.5,
            "width": 6,
        },
        "marker": {"size": 10, "color": [row.colour for row in rows]},
        "hovertext": [f"{plot_text(row.label)}<br>{plot_text(measured_text(row.measured, unit))}" for row in rows],
        "hoverinfo": "text",
    }


def _limit(limit: float) -> Layout:
    line = {"type": "line", "yref": "paper", "x0": limit, "x1": limit, "y0": 0, "y1": 1,
            "line": {"color": "fail", "width": 2, "dash": "dash"}}  # fmt: skip
    return {"shapes": [line]}
