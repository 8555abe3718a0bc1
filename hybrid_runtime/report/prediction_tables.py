"""A judged prediction, a replay and the history of predictions in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from hybrid_runtime.prediction_history import Bias
from hybrid_runtime.report import prediction_cells
from hybrid_runtime.report.cells import printable
from hybrid_runtime.report.plain_table import plain_table
from hybrid_runtime.verdict import Verdict
from hybrid_runtime.verdict_prediction import PredictionVerdict

STYLES = {
    PredictionVerdict.PREDICTED: "bold green",
    PredictionVerdict.OPTIMISTIC: "bold red",
    PredictionVerdict.PESSIMISTIC: "bold yellow",
    PredictionVerdict.STALE: "bold yellow",
    PredictionVerdict.UNJUDGED: "dim",
}


def prediction_parts(verdict: Verdict) -> list[RenderableType]:
    """What the plan predicted beside what was measured, then the replay; nothing where there is neither."""
    parts: list[RenderableType] = []
    judged, modelled = verdict.prediction, verdict.modelled
    if judged is not None and judged.reason != "no_prediction":
        words = prediction_cells.prediction_sentence(judged)
        parts += [Text(), Text.assemble("prediction ", (words, STYLES[judged.verdict]))]
        parts += _drawn(prediction_cells.prediction_tables(judged))
    if modelled is not None:
        parts += [Text(), Text(f"{prediction_cells.MODELLED_TITLE.lower()}: {printable(modelled.method)}")]
        parts += _drawn(prediction_cells.modelled_tables(modelled))
    return parts


def history_table(biases: Sequence[Bias]) -> RenderableType:
    """How predictions came out over runs."""
    rows = [prediction_cells.history_cells(bias) for bias in biases]
    return Group(*_drawn([(prediction_cells.HISTORY_TITLE, prediction_cells.HISTORY_HEADINGS, rows)]))


def _drawn(tables: Iterable[prediction_cells.Table]) -> list[RenderableType]:
    drawn: list[RenderableType] = []
    for title, headings, rows in tables:
        if rows:
            table = plain_table(title, *headings)
            for row in rows:
                table.add_row(*(Text(text, overflow="fold") for text in row))
            drawn.append(table)
    return drawn
