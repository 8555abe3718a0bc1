"""What a figure of the page is: views to choose from, each a plotly description as plain data.

Colours are names of the palette in keys that end in "color"; the page puts the colour of the reader's light or dark
paper there. Every text that comes from a file goes through `plot_text`: plotly reads some tags in its labels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hybrid_runtime.report.cells import printable, ranges_text
from hybrid_runtime.verdict import DeviceRow

T = TypeVar("T")
Trace = dict[str, Any]
Layout = dict[str, Any]

# What is no work of a device: grey lines on the bare paper.
HATCHED: Trace = {"pattern": {"shape": "/", "size": 6, "solidity": 0.3, "fillmode": "replace"}}

MOST_POINTS = 1500  # of one trace of points
_ROW_PX, _FRAME_PX, _MOST_ROWS_PX = 26, 76, 1800


@dataclass(frozen=True)
class View:
    """One picture of a figure.

    Attributes:
        label: how a reader chooses it, where a figure has several views.
    """

    traces: Sequence[Trace]
    layout: Layout
    label: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure: its pictures, and in words what they show and what they leave out.

    Attributes:
        id: unique on the page.
        zoom: there are buttons to move along the horizontal axis.
    """

    id: str
    title: str
    views: Sequence[View]
    notes: Sequence[str] = field(default_factory=tuple)
    zoom: bool = False

    def values(self) -> list[dict[str, Any]]:
        """The views as the page's script takes them."""
        return [{"label": view.label, "traces": view.traces, "layout": view.layout} for view in self.views]


def plot_text(text: str) -> str:
    """Text that plotly shows as it is."""
    return html.escape(printable(text), quote=False)


def thinned(items: Sequence[T], most: int = MOST_POINTS) -> Sequence[T]:
    """At most so many of the items, evenly picked: the page must stay below 6 MB."""
    return items[:: max(1, -(-len(items) // most))]


def number(text: str | None) -> float | None:
    """A decimal text as a finite number; None for what is not one ("n/a", unbounded)."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def rows_layout(labels: Sequence[str], x_title: str, *, row_px: int = _ROW_PX) -> Layout:
    """A layout with one horizontal row per label, the first on top; rows have the numbers 0, 1, ... on the y axis."""
    rows = len(labels)
    return {
        "height": _FRAME_PX + min(row_px * rows, _MOST_ROWS_PX),
        "bargap": 0.25,
        "xaxis": {"title": {"text": x_title}},
        "yaxis": {
            "range": [rows - 0.5, -0.5],
            "fixedrange": True,
            "showgrid": False,
            "tickvals": list(range(rows)) if rows * row_px <= _MOST_ROWS_PX else None,
            "ticktext": [plot_text(label) for label in labels] if rows * row_px <= _MOST_ROWS_PX else None,
        },
    }


def device_label(row: DeviceRow) -> str:
    """A device by what it holds: short enough for an axis; its id stands in the tables."""
    ranks = "rank" if len(row.ranks) == 1 else "ranks"
    stages = "stage" if len(row.stages) == 1 else "stages"
    return f"{ranks} {ranges_text(row.ranks)} · {stages} {ranges_text(row.stages)}"
