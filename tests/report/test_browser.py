"""The pages in a real browser, headless: no error, no request, every plot drawn, quick, fit for a phone and print."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid_runtime.report.compare import compare_page
from hybrid_runtime.report.page.render import report_page
from hybrid_runtime.report.run_data import Run
from tests.report import examples
from tests.report.browser import Tab, browser, find_browser
from tests.report.runs import large_run

MOST_BYTES, MOST_S = 6_000_000, 3
MARKS = ".barlayer path, .scatterlayer path, .boxlayer path"
COUNT_MARKS = f"[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('{MARKS}').length)"

# A user without a browser is not kept from testing the rest; CI is not to pass without having looked.
pytestmark = pytest.mark.skipif(
    find_browser() is None and os.environ.get("CI") != "true",
    reason="no chromium, chromium-browser or google-chrome on PATH: the pages were not opened",
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    executable = find_browser()
    assert executable is not None, "no browser on PATH; scripts/test installs one"
    with browser(executable, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """8 ranks x 200 steps, with everything that a verdict can hold."""
    found = large_run(tmp_path_factory.mktemp("large"))
    devices = tuple(row.model_copy(update={"time_parts": examples.TIME_PARTS}) for row in found.verdict.devices)
    verdict = found.verdict.model_copy(update={"devices": devices, "name": examples.NASTY, **examples.METHOD})
    return Run(found.folder, verdict, found.plan, found.ranks, found.baseline)


@pytest.fixture(scope="module")
def report(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(run), encoding="utf-8")
    return path


@pytest.mark.alone
def test_8_ranks_and_200_steps_open_at_once_without_an_error_or_a_request(report: Path, tab: Tab) -> None:
    assert report.stat().st_size < MOST_BYTES
    tab.size(1366, 900)
    opened_s = min(tab.open(report) for _ in range(3))  # the machine may be busy with other tests
    assert tab.errors == []
    assert tab.requests == [report.resolve().as_uri()]
    assert opened_s < MOST_S
    marks = tab.value(COUNT_MARKS)
    assert len(marks) == 9
    assert min(marks) > 0
    assert tab.value("document.querySelectorAll('.plot.js-plotly-plot svg.main-svg').length") >= len(marks)
    assert tab.value("document.querySelectorAll('.keys button').length") > len(marks)


def test_another_step_is_chosen_moved_and_a_kind_hidden(report: Path, tab: Tab) -> None:
    tab.size(1366, 900)
    tab.open(report)
    tab.value("(() => { const choice = document.querySelector('#timeline select');"
              " choice.value = '1'; choice.onchange(); })()")  # fmt: skip
    plot = "document.querySelector('#timeline .plot')"
    whole = tab.value(f"{plot}.layout.xaxis.range")
    tab.value("document.querySelector('#timeline button[data-move=in]').click()")
    start, end = tab.value(f"{plot}.layout.xaxis.range")
    assert end - start == pytest.approx((whole[1] - whole[0]) / 2)
    drawn = tab.value(f"{plot}.querySelectorAll('{MARKS}').length")
    tab.value(
        "[...document.querySelectorAll('#timeline .keys button')].find(one => one.textContent == 'forward').click()"
    )
    assert 0 < tab.value(f"{plot}.querySelectorAll('{MARKS}').length") < drawn
    assert tab.errors == []


@pytest.mark.parametrize(("width", "height", "phone"), [(1366, 900, False), (360, 640, True)])
def test_no_page_scrolls_sideways(report: Path, run: Run, tmp_path: Path, tab: Tab, width: int, height: int, phone: bool) -> None:  # fmt: skip # noqa: E501
    compared = tmp_path / "compare.html"
    compared.write_text(compare_page(run, run), encoding="utf-8")
    tab.size(width, height, phone=phone)
    for page in (report, compared):
        tab.open(page)
        assert tab.value("document.documentElement.scrollWidth") <= width
        assert tab.errors == []
        assert tab.requests == [page.resolve().as_uri()]


def test_wide_tables_scroll_to_their_last_column_in_their_own_box(report: Path, tab: Tab) -> None:
    """At 400 pixels: nothing is cut for good, and where columns are hidden a shadow says so."""
    tab.size(400, 844, phone=True)
    tab.open(report)
    hidden = tab.value(
        "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).map(box => {"
        " box.scrollLeft = box.scrollWidth;"
        " const last = box.querySelector('tr').lastElementChild.getBoundingClientRect();"
        " return [last.right - box.getBoundingClientRect().right,"
        " getComputedStyle(box).backgroundImage.includes('gradient')]; })"
    )
    assert hidden, "no table of the report is wider than a phone"
    assert all(beyond < 2 and shadow for beyond, shadow in hidden), hidden


def test_plots_follow_light_and_dark(report: Path, tab: Tab) -> None:
    def ink() -> str:
        return str(tab.value("getComputedStyle(document.querySelector('.plot .xtick text')).fill"))

    tab.size(1366, 900)
    tab.open(report)
    light = ink()
    tab.size(1366, 900, dark=True)
    until_s = time.monotonic() + 10
    while ink() == light and time.monotonic() < until_s:
        time.sleep(0.05)
    assert ink() != light
    assert tab.value("getComputedStyle(document.body).color") == ink()


def test_it_prints(report: Path, tab: Tab, tmp_path: Path) -> None:
    tab.size(1366, 900, dark=True)
    tab.open(report)
    tab.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert tab.errors == []


@pytest.mark.parametrize(
    ("wrong", "said"), [("missing();", "missing is not defined"), ("fetch('http://127.0.0.1:9/');", "violates")]
)
def test_a_broken_page_would_be_caught(report: Path, tab: Tab, tmp_path: Path, wrong: str, said: str) -> None:
    """The second is a request: the page's own policy refuses it, and the console tells."""
    broken = tmp_path / "broken.html"
    broken.write_text(
        report.read_text(encoding="utf-8").replace("  drawAll();", f"  drawAll(); {wrong}"), encoding="utf-8"
    )
    tab.size(1366, 900)
    tab.open(broken)
    assert any(said in error for error in tab.errors), tab.errors
