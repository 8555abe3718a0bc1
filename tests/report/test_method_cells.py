"""How a verdict was reached, in words; and that terminal and Markdown show it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hybrid_runtime.report import method_cells
from hybrid_runtime.report.markdown import markdown
from hybrid_runtime.report.terminal import print_verdict
from hybrid_runtime.verdict import Sampling
from tests.report import examples


def plain(width: int = 400, **changes: object) -> str:
    stream = io.StringIO()
    print_verdict(examples.verdict(**changes), Console(file=stream, width=width))
    return stream.getvalue()


def test_the_terminal_has_a_line_for_everything_that_was_done() -> None:
    text = plain(**examples.METHOD)
    assert "self-test PASS the same plan on both sides differs by nothing: 0.1 % [-0.4, 0.6] the interval holds" in text
    assert "self-test FAIL both sides reach the same loss: 5.1 against 5.2" in text
    assert "sampling: Measuring stopped because the budget of time or looks was used up: 2 of at most 5 looks" in text
    assert "outliers, candidate: 3 beyond Tukey's outer fences, flagged and kept (steps 31-32, 47): mean" in text
    assert "baseline tp_only (tp 6 x pp 1 x dp 1, as many devices; decides nothing): latency reduction 13.2 %" in text
    assert "latency reduction n/a, throughput gain n/a; out of memory" in text
    assert "\x1b" not in text


def test_what_was_not_done_has_no_line() -> None:
    text = plain()
    for word in ("self-test", "sampling:", "outliers", "decides nothing"):
        assert word not in text


def test_markdown_has_a_section_for_everything_that_was_done() -> None:
    text = markdown(examples.verdict(**examples.METHOD))
    for title in ("Self-tests", "Sampling", "Other baselines, shown only"):
        assert f"\n## {title}\n" in text
    assert "❌ FAIL | both sides reach the same loss" in text
    assert "- judged by: version 0.1.0, git abc" in text
    assert "- not the same on all ranks: OMP_NUM_THREADS is 1 on rank 0" in text
    assert "\x1b" not in text
    assert "</td>" not in text


@pytest.mark.parametrize(
    ("stopped", "words"),
    [("decided", "no claim was left"), ("budget", "used up"), ("single look", "fixed before the run")],
)
def test_why_sampling_stopped(stopped: str, words: str) -> None:
    sampling = Sampling.model_validate(examples.SAMPLING.model_dump() | {"stopped": stopped})
    assert words in method_cells.sampling_text(sampling)


def test_looks_and_sections() -> None:
    assert next(method_cells.look_rows(examples.SAMPLING)) == ("1", "20", "61.2 s", "compute_balance")
    sections = method_cells.provenance_sections(examples.PROVENANCE)
    assert list(sections)[:5] == ["judged by", "run", "versions", "environment variables", "host laptop"]
    assert method_cells.provenance_sections(None) == {}
    assert all("\x1b" not in f"{title}{values}" for title, values in sections.items())
