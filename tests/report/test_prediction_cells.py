"""A judged prediction, a replay and the history, in words: every report shows them, and no name leaves its place."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from hybrid_runtime.report import prediction_cells
from hybrid_runtime.report.junit import junit
from hybrid_runtime.report.markdown import markdown
from hybrid_runtime.report.page.render import report_page
from hybrid_runtime.report.prediction_tables import history_table
from hybrid_runtime.report.terminal import print_plainly, print_verdict
from hybrid_runtime.verdict import Verdict
from tests.report import examples
from tests.report.runs import small_run


def shown() -> Verdict:
    """The example with a prediction, a replay, and a modelled figure beside its latency claim."""
    claims = [
        claim.model_copy(update={"modelled": examples.MODELLED}) if claim.id == "latency_reduction" else claim
        for claim in examples.CLAIMS
    ]
    return examples.verdict(claims=claims, prediction=examples.PREDICTION, modelled=examples.MODELLED_RUN)


def plain(verdict: Verdict, width: int = 200) -> str:
    stream = io.StringIO()
    print_verdict(verdict, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_terminal_shows_prediction_budget_and_replay() -> None:
    text = plain(shown())
    assert "prediction OPTIMISTIC (rehearsal): time of a step -12.5 %" in text
    assert "175 ms     200 ms    -12.5 %" in text
    assert "no, 170 ms to 190 ms" in text
    assert "OPTIMISTIC at 10 %" in text
    assert "1.0 MiB    1.0 MiB   +0 %" in text
    (total,) = (line.split() for line in text.splitlines() if line.startswith("sum "))
    assert total == ["sum", "175", "ms", "200", "ms", "-25", "ms"]
    assert "messages" not in text
    assert "modelled 91.2 %: WOULD PASS (replay with this run's own costs); against" in text
    assert "90 ms (45.0 %)" in text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_it_fits_and_nothing_is_cut(width: int) -> None:
    lines = plain(shown(), width).splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "WOULD PASS" in text
    assert "OPTIMISTIC" in text


def test_names_stay_in_their_place() -> None:
    for text in (plain(shown()), markdown(shown(), examples.HISTORY), junit(shown())):
        assert "\x1b" not in text
    assert "</td>" not in markdown(shown(), examples.HISTORY)
    ElementTree.fromstring(junit(shown()))


def test_no_report_says_pass_of_a_modelled_figure() -> None:
    assert "WOULD PASS" in prediction_cells.claim_modelled(shown().claims[2])
    assert shown().claims[2].outcome == "INCONCLUSIVE"
    assert prediction_cells.claim_modelled(shown().claims[0]) == ""


def test_markdown_and_junit_have_them_too() -> None:
    text = markdown(shown(), examples.HISTORY)
    for title in (
        "Prediction of the plan", "Predicted against measured", "Replayed plans", "Time budget of the replayed step",
        prediction_cells.HISTORY_TITLE, prediction_cells.BUDGET_TITLES["step_time"],
    ):  # fmt: skip
        assert f"\n## {title}\n" in text
    assert "WOULD PASS" in text
    assert "WOULD PASS" in junit(shown())
    assert "Prediction" not in markdown(examples.verdict())


def test_the_page_has_them_too(tmp_path: Path) -> None:
    run = small_run(tmp_path, prediction=examples.PREDICTION.model_dump(), modelled=examples.MODELLED_RUN.model_dump())
    page = report_page(replace(run, history=examples.HISTORY))
    for id in ("prediction", "modelled", "history"):
        assert f'<h2 id="{id}">' in page
        assert f'<a href="#{id}">' in page
    assert '<span class="badge FAIL">OPTIMISTIC</span>' in page
    assert "one-sided" in page
    assert "x</td>|" not in page
    bare = report_page(run)
    assert 'id="history"' not in bare


def test_the_history_in_a_terminal() -> None:
    stream = io.StringIO()
    print_plainly(history_table(examples.HISTORY), Console(file=stream, width=160))
    text = stream.getvalue()
    assert "one-sided: the model errs the same way every time" in text
    assert "7 / 0" in text
    assert "+0.5 %" in text
