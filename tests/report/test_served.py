"""Requests in every report: the same words in terminal, Markdown and page, and a curve for each latency."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from hybrid_runtime.report.markdown import markdown
from hybrid_runtime.report.page.latencies import latencies
from hybrid_runtime.report.page.render import report_page
from hybrid_runtime.report.run_data import Run, read_run
from hybrid_runtime.report.served_cells import latency_rows
from hybrid_runtime.report.terminal import print_verdict
from hybrid_runtime.verifier.judge import judge
from tests.verifier.served import noisy_times, serving, write_served


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    targets, once = {"first_token_s": {"median": "0.003"}}, {"batch_steps": 1}
    deployed = serving(targets=targets, baseline={"kind": "naive_pipeline"}, measurement=once)
    batch = {"global_batch_size": 8, "microbatch_size": 4, "sequence_length": 32, "items_in_flight": 1}
    write_served(folder, deployed, times=noisy_times(1), steps=30, baseline=serving(batch=batch))
    return read_run(folder, judge(folder))


def test_tables_say_what_is_known_and_what_it_takes(run: Run) -> None:
    rows = list(latency_rows(run.verdict.served))
    assert [row[:2] for row in rows[:2]] == [("time to first token", "candidate"), ("time to first token", "baseline")]
    assert rows[1][2:] == ("2 ms", "2 ms", "n/a: needs 1000 requests")
    assert "[" in rows[0][2]


def test_a_quantile_that_nothing_bounds_has_words_instead_of_an_interval(tmp_path: Path) -> None:
    """Nine rounds are too few batches to know how much rounds differ."""
    write_served(tmp_path, serving(measurement={"batch_steps": 1}), times=noisy_times(1), steps=9)
    median = next(latency_rows(judge(tmp_path).served))[2]
    assert re.fullmatch(
        r"[\d.]+ ms, \d independent batches of 1 rounds cannot bound the quantile; about \d more rounds? needed", median
    ), median


def test_all_reports_have_them(run: Run) -> None:
    console = Console(file=io.StringIO(), width=140, color_system=None)
    print_verdict(run.verdict, console)
    assert isinstance(console.file, io.StringIO)
    page = report_page(run)
    for text in (console.file.getvalue(), markdown(run.verdict), page):
        for words in (
            "time to first token",
            "n/a: needs 1000 requests",
            "240 requests in 30 judged rounds",
            "kv cache",
        ):
            assert words in text, words
    assert '<h2 id="requests">' in page


def test_curves_rise_to_all_requests_and_limits_are_drawn(run: Run) -> None:
    figure = latencies(run)
    assert figure is not None
    assert [view.label for view in figure.views] == [
        "time to first token", "time per token after it", "time to whole answer",
    ]  # fmt: skip
    candidate, baseline, limit = figure.views[0].traces
    assert (candidate["name"], baseline["name"]) == ("candidate, 240 requests", "baseline, 240 requests")
    assert candidate["y"][-1] == 100
    assert candidate["x"] == sorted(candidate["x"])
    assert (limit["x"], limit["y"], limit["line"]["color"]) == ([3, 3], [0, 50], "pass")
    json.dumps(figure.values())


def test_a_training_has_no_such_figure(run: Run) -> None:
    assert latencies(Run(Path(), run.verdict, run.plan, run.ranks)) is None
