"""The page as text: everything escaped, nothing fetched, every figure that has something to show and no other."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.report.page import timeline as timelines
from hybrid_runtime.report.page.distributions import distributions
from hybrid_runtime.report.page.driver import driver_series
from hybrid_runtime.report.page.figure import Figure, number, plot_text
from hybrid_runtime.report.page.intervals import interval_figures
from hybrid_runtime.report.page.memory import memory
from hybrid_runtime.report.page.render import report_page
from hybrid_runtime.report.page.replayed import replayed_figure
from hybrid_runtime.report.page.shares import compute_shares, memory_shares
from hybrid_runtime.report.page.steps import step_series
from hybrid_runtime.report.page.time_parts import time_parts
from hybrid_runtime.report.page.timeline import timeline
from hybrid_runtime.report.palette import COLOURS
from hybrid_runtime.report.run_data import Run, chosen_steps
from hybrid_runtime.verdict import Outliers
from tests.report import examples
from tests.report.runs import judged, small_run, written
from tests.verifier.nvml_examples import write_nvml
from tests.verifier.synthetic import MS, steady

SCRIPT = re.compile(r"<script[^>]*>.*?</script>", re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("run"))


def with_verdict(run: Run, **changes: object) -> Run:
    return Run(run.folder, run.verdict.model_copy(update=changes), run.plan, run.ranks, run.baseline)


def text_of(page: str) -> str:
    return SCRIPT.sub("", page)


def figures_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def traces(figure: Figure | None, view: int = 0) -> dict[str, Any]:
    assert figure is not None
    return {trace["name"]: trace for trace in figure.views[view].traces}


def test_the_page_begins_with_the_verdict_in_words_and_holds_every_claim(run: Run) -> None:
    page = report_page(run)
    text = unescape(re.sub(r"<[^>]+>", " ", text_of(page)))
    assert re.search(rf"<h1><span class=\"badge {run.verdict.verdict}\">", page)
    assert text.index("could not be decided" if run.verdict.exit_code == 3 else "does not keep") < text.index("Claims")
    for claim in run.verdict.claims:
        assert claim.text in text
        assert claim.detail in text
    for file in run.verdict.raw:
        assert file.sha256 in text


def test_nothing_of_the_page_is_fetched(run: Run) -> None:
    page = report_page(run)
    assert "default-src 'none'" in page
    text = text_of(page)
    assert not re.search(r"<(script|link|img|iframe|object)[^>]*(src|href)=[\"'](?!data:)", text)
    assert not re.search(r"@import|url\(", text)
    assert len(page.encode()) < 6_000_000


def test_names_cannot_become_tags_scripts_or_attributes(run: Run) -> None:
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'\x1b" + examples.NASTY
    claim = run.verdict.claims[0].model_copy(update={"text": bad, "detail": bad})
    devices = tuple(row.model_copy(update={"device": bad}) for row in run.verdict.devices)
    page = report_page(
        with_verdict(run, name=bad, claims=(claim,), devices=devices, warnings=(bad,), **examples.METHOD)
    )
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert "\x1b" not in text_of(page)
    assert page.count("<script") == report_page(run).count("<script")
    hover = figures_of(page)["compute-shares"][0]["traces"][1]["hovertext"][0]
    assert hover.startswith("&lt;/script&gt;&lt;script&gt;")


def test_a_verdict_of_an_old_folder_has_no_empty_sections(run: Run) -> None:
    page = text_of(
        report_page(with_verdict(run, devices=(), sides=(), static_checks=(), warnings=(), self_test=(), outliers=()))
    )
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert headings == ["Claims", "Timeline", "Step times", "Provenance"]
    assert all(f'id="{anchor}"' in page for anchor in re.findall(r'<a href="#([^"]+)"', page))


def test_self_tests_sampling_and_provenance_are_shown(run: Run) -> None:
    page = unescape(text_of(report_page(with_verdict(run, **examples.METHOD))))
    for shown in ("Self-tests and sampling", "5.1 against 5.2", "budget of time or looks was used up", "tp_only",
                  "host laptop", "Example 9000", "Not the same on all ranks:"):  # fmt: skip
        assert shown in page


def test_every_colour_is_one_of_the_palette(run: Run) -> None:
    def colours(value: Any, key: str = "") -> set[str]:
        if isinstance(value, dict):
            return {name for key, one in value.items() for name in colours(one, key)}
        if isinstance(value, list):
            return {name for one in value for name in colours(one, key)}
        return {value} if key.endswith("color") and isinstance(value, str) else set()

    devices = tuple(row.model_copy(update={"time_parts": examples.TIME_PARTS}) for row in run.verdict.devices)
    assert colours(figures_of(report_page(with_verdict(run, devices=devices, **examples.METHOD)))) <= set(COLOURS)


def test_share_bars_begin_at_the_equal_share_and_end_at_the_verdicts_figure(run: Run) -> None:
    rows = tuple(
        row.model_copy(update={"time_share": share, "time_share_bounds": bounds})
        for row, share, bounds in zip(
            run.verdict.devices, ("32.9", "33.1", "34"), (("32.5", "33.5"), None, ("33", "35"))
        )
    )
    figure = compute_shares(run.verdict.model_copy(update={"devices": rows}))
    assert figure is not None
    bars, ends, work = figure.views[0].traces
    assert [base + x for base, x in zip(bars["base"], bars["x"])] == pytest.approx([32.9, 33.1, 34])
    assert ends["x"] == [32.9, 33.1, 34]
    assert ends["error_x"]["array"] == pytest.approx([0.6, 0, 1])
    assert ends["error_x"]["arrayminus"] == pytest.approx([0.4, 0, 1])
    assert work["name"] == "FLOP share"
    band = figure.views[0].layout["shapes"][1]
    assert band["x1"] - band["x0"] == pytest.approx(1)
    assert band["x0"] + band["x1"] == pytest.approx(32.9 + 34)


def test_shares_of_one_device_or_of_unknown_size_are_not_drawn(run: Run) -> None:
    one = run.verdict.model_copy(update={"devices": run.verdict.devices[:1]})
    assert compute_shares(one) is None
    unknown = tuple(row.model_copy(update={"memory_share": None}) for row in run.verdict.devices)
    assert memory_shares(run.verdict.model_copy(update={"devices": unknown})) is None


def test_time_parts_are_the_verdicts(run: Run) -> None:
    assert time_parts(run.verdict.model_copy(update={"devices": examples.DEVICES})) is None
    rows = tuple(row.model_copy(update={"time_parts": examples.TIME_PARTS}) for row in examples.DEVICES)
    drawn = traces(time_parts(run.verdict.model_copy(update={"devices": rows})))
    assert list(drawn) == ["compute", "exposed communication", "host", "bubble"]
    assert drawn["compute"]["x"] == [40.0] * 6


@pytest.mark.parametrize(
    ("capacity", "line", "words"),
    [
        (None, False, "report no capacity"),
        (2000, True, "Dashed: capacity, 2.0 KiB"),
        (1 << 40, False, "far to the right"),
    ],
)
def test_memory_is_stacked_beside_its_peak_and_the_capacity(
    run: Run, capacity: int | None, line: bool, words: str
) -> None:
    device = run.ranks[0].header.device.model_copy(update={"total_bytes": capacity})
    header = run.ranks[0].header.model_copy(update={"device": device})
    figure = memory(Run(run.folder, run.verdict, run.plan, [run.ranks[0]._replace(header=header), *run.ranks[1:]]))
    assert figure is not None
    assert ("shapes" in figure.views[0].layout) is line
    assert words in figure.notes[-1]
    drawn = traces(figure)
    assert list(drawn) == ["parameters", "gradients", "optimizer", "activations", "peak of the sum"]
    assert drawn["parameters"]["x"] == pytest.approx([100 / 1024] * 3)
    assert drawn["peak of the sum"]["x"] == pytest.approx([900 / 1024, 1000 / 1024, 1100 / 1024])


def test_the_timeline_offers_the_median_slowest_fastest_and_first_step(run: Run) -> None:
    figure = timeline(run)
    assert figure is not None
    assert [view.label.partition(": ")[0] for view in figure.views] == [
        f"step {step}" for step in chosen_steps(run.ranks)
    ]
    assert any("median" in view.label for view in figure.views)
    drawn = traces(figure)
    assert list(drawn) == ["bubble", "forward", "backward", "exposed communication"]
    step = next(iter(chosen_steps(run.ranks)))
    record = run.ranks[1].steps[step]
    span = record.spans[0]
    assert drawn["forward"]["hovertext"] == ["0F0", "1F0", "2F0"]
    assert drawn["forward"]["base"][1] == pytest.approx((span.start_ns - record.start_ns) / 1e6, abs=1e-3)
    assert drawn["forward"]["x"][1] == pytest.approx((span.end_ns - span.start_ns) / 1e6, abs=1e-3)
    assert drawn["bubble"]["x"] == pytest.approx(figure.views[0].layout["xaxis"]["range"][1:] * 3, abs=1e-3)


def test_of_too_many_boxes_some_ranks_are_drawn_and_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelines, "MOST_BOXES", 6)
    figure = timeline(run)
    assert figure is not None
    assert "ranks 0 of 3" in figure.notes[0]
    assert len(traces(figure)["bubble"]["x"]) == 1


def test_the_replay_stands_below_the_measured_rank(run: Run) -> None:
    figure = replayed_figure(run)
    assert figure is not None
    drawn = traces(figure)
    assert drawn["forward"]["y"] == [0, 1, 2, 3, 4, 5]
    assert drawn["forward"]["marker"]["opacity"] == [1, 0.6] * 3
    assert figure.views[0].layout["yaxis"]["ticktext"][1::2] == ["replayed"] * 3
    assert "modelled" in figure.notes[0]


def test_a_plan_that_cannot_be_replayed_leaves_the_figure_out(run: Run) -> None:
    edited = run.plan.model_copy(update={"actions": (("0F0", "0W0"), *run.plan.actions[1:])})
    assert replayed_figure(Run(run.folder, run.verdict, edited, run.ranks)) is None


def test_step_times_show_both_sides_blocks_warm_up_and_outliers(run: Run) -> None:
    flagged = Outliers(role="candidate", steps=(7, 9), median_step_s="1", mean_step_s="1", mean_without_s="1")
    figure = step_series(with_verdict(run, outliers=(flagged,)))
    drawn = traces(figure)
    assert {"candidate, warm-up", "baseline, warm-up", "candidate's turn", "baseline's turn"} < set(drawn)
    assert len(drawn["candidate, spans recorded"]["x"]) == 20
    assert len(drawn["candidate, outlier"]["x"]) == 2
    assert drawn["candidate's turn"]["x"].count(None) == 4
    assert "flagged, never dropped" in " ".join(figure.notes if figure else ())


def test_a_run_without_a_baseline_has_one_side(run: Run) -> None:
    verdict = run.verdict.model_copy(update={"outliers": ()})
    drawn = traces(step_series(Run(run.folder, verdict, run.plan, run.ranks)))
    assert set(drawn) == {"candidate, warm-up", "candidate, spans recorded"}


def test_clocks_and_temperatures_of_gpus_are_drawn_and_what_was_not_sampled_is_not(tmp_path: Path) -> None:
    side = steady([10 * MS] * 3, steps=20, block_steps=5, kind="cuda", device_bytes=1 << 34)
    folder = written(tmp_path, side, side)
    write_nvml(folder, clocks=(1980, 1800, 1980))
    figure = driver_series(judged(folder))
    assert figure is not None
    assert [view.label for view in figure.views] == ["SM clock, MHz", "temperature, °C", "utilisation by the driver, %"]
    drawn = traces(figure)
    assert list(drawn) == ["GPU of rank 0", "GPU of rank 1", "GPU of rank 2"]
    assert drawn["GPU of rank 1"]["y"] == [1800] * 20


def test_a_run_on_cpus_has_no_clocks(run: Run) -> None:
    assert driver_series(run) is None


def test_intervals_stand_beside_their_self_tests(run: Run) -> None:
    speed, planted = interval_figures(run.verdict.model_copy(update=examples.METHOD))
    assert speed.views[0].layout["yaxis"]["ticktext"] == [
        "declared baseline (A/B)", "tp_only, shown only", "the same plan twice (A/A)",
    ]  # fmt: skip
    assert planted.views[0].layout["yaxis"]["ticktext"] == ["the deployment", "0.5 pp planted", "2 pp planted"]
    assert planted.views[0].traces[0]["error_x"]["array"][1] == pytest.approx(0.11)
    assert interval_figures(run.verdict) == []


def test_distributions_of_two_runs(run: Run) -> None:
    figure = distributions(run, run)
    assert figure is not None
    assert len(figure.views[0].traces) == 4
    assert distributions(Run(run.folder, run.verdict, run.plan, ()), Run(run.folder, run.verdict, run.plan, ())) is None


@pytest.mark.parametrize(("text", "value"), [("1.5", 1.5), ("n/a", None), ("inf", None), ("nan", None), (None, None)])
def test_only_finite_numbers_are_drawn(text: str | None, value: float | None) -> None:
    assert number(text) == value


def test_plotly_reads_no_tag_in_a_name() -> None:
    assert plot_text("<b>&\x1b") == "&lt;b&gt;&amp;\\x1b"
