"""The page as one self-contained HTML file: templates that escape everything, plotly's script inside, nothing fetched.

A content security policy in the page itself forbids every request, so a mistake here cannot become one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hybrid_runtime.report import cells, method_cells, prediction_cells, served_cells
from hybrid_runtime.report.page.driver import driver_series
from hybrid_runtime.report.page.figure import Figure
from hybrid_runtime.report.page.intervals import interval_figures
from hybrid_runtime.report.page.latencies import latencies
from hybrid_runtime.report.page.memory import memory
from hybrid_runtime.report.page.replayed import replayed_figure
from hybrid_runtime.report.page.shares import compute_shares, memory_shares
from hybrid_runtime.report.page.steps import step_series
from hybrid_runtime.report.page.time_parts import time_parts
from hybrid_runtime.report.page.timeline import timeline
from hybrid_runtime.report.page.trade_off import trade_off_figure
from hybrid_runtime.report.palette import COLOURS
from hybrid_runtime.report.run_data import Run
from hybrid_runtime.report.why import why_lines
from hybrid_runtime.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from jinja2 import Environment

SIGNS = {
    Outcome.PASS: "✓",
    Outcome.FAIL: "✗",
    Outcome.INCONCLUSIVE: "?",
    Outcome.NOT_APPLICABLE: "–",
    Outcome.ERROR: "!",
}
_TEMPLATES = files("hybrid_runtime.report.page") / "templates"


class Figures(dict[str, Figure]):
    """Figures by id; one that had nothing to show is false and is left out by the templates."""

    def __missing__(self, id: str) -> None:
        return None


def report_page(run: Run) -> str:
    """The report of one run."""
    judged, modelled = run.verdict.prediction, run.verdict.modelled
    of_devices = [compute_shares(run.verdict), memory_shares(run.verdict), time_parts(run.verdict), memory(run)]
    of_requests = [latencies(run), trade_off_figure(run)]
    of_steps = [timeline(run), replayed_figure(run), step_series(run), driver_series(run)]
    found = [*of_requests, *of_devices, *of_steps, *interval_figures(run.verdict)]
    figures = [figure for figure in found if figure is not None]
    return page(
        "report.html.j2",
        figures,
        verdict=run.verdict,
        why=why_lines(run.verdict, run.ranks),
        **_rows(run.verdict),
        tests_shown=_tests_shown(run.verdict),
        prediction_tables=list(prediction_cells.prediction_tables(judged)) if judged else [],
        modelled_tables=list(prediction_cells.modelled_tables(modelled)) if modelled else [],
        history_rows=[prediction_cells.history_cells(bias) for bias in run.history],
    )


def _rows(verdict: Verdict) -> dict[str, Sequence[Any]]:
    """The tables as texts; a judged row is its outcome and the texts after it."""
    return {
        "compute_rows": [cells.compute_cells(row) for row in verdict.devices],
        "memory_rows": [cells.memory_cells(row, verdict.devices) for row in verdict.devices],
        "latency_rows": list(served_cells.latency_rows(verdict.served)),
        "phase_rows": served_cells.phase_rows(verdict.served),
        "side_rows": cells.side_rows(verdict.sides),
        "check_rows": [(row.outcome, cells.check_cells(row)[1:]) for row in verdict.static_checks],
        "self_check_rows": [(row.outcome, method_cells.self_check_cells(row)[1:]) for row in verdict.self_test],
        "other_baseline_rows": [method_cells.other_baseline_cells(row) for row in verdict.other_baselines],
    }


def _tests_shown(verdict: Verdict) -> bool:
    return bool(verdict.self_test or verdict.sampling or verdict.outliers or verdict.other_baselines)


def page(template: str, figures: Sequence[Figure], **values: Any) -> str:
    """A template filled in; it finds the figures by id in `figure`, the script that draws them their data in `data`.

    Raises:
        jinja2.TemplateError: a template is wrong; no input can cause it.
    """
    return (
        _environment()
        .get_template(template)
        .render(
            figure=Figures({figure.id: figure for figure in figures}),
            data={figure.id: figure.values() for figure in figures},
            **values,
        )
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FunctionLoader(lambda name: (_TEMPLATES / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "cells": cells,
        "method": method_cells,
        "prediction": prediction_cells,
        "requests": served_cells,
        "signs": SIGNS,
        "colours": COLOURS,
        # Files of this package and plotly's own script: the only texts that are not escaped.
        "style": Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
        "script": Markup((_TEMPLATES / "plots.js").read_text(encoding="utf-8")),
        "plotly": Markup(get_plotlyjs().replace("</script", "<\\/script")),
    }
    environment.filters["printable"] = cells.printable
    return environment
