"""The grid: what every column shows, scaled or not, and files that hold nothing but themselves."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from fractions import Fraction

import pytest
from rich.console import Console

from hybrid_runtime.report.schedule_facts import Case, figures, num_messages, replayed
from hybrid_runtime.report.schedule_grid import grid_html, grid_svg, grid_text, legend
from tests.report.examples import NASTY


def lines(name: str, width: int, pp_degree: int, num_microbatches: int) -> list[str]:
    return grid_text(replayed(name, Case(pp_degree, num_microbatches)), width).plain.splitlines()


def test_a_step_too_wide_to_name_its_microbatches_is_folded() -> None:
    assert lines("1f1b", 7 + 9, 2, 2) == [
        "rank 0 F0F1....B",
        "rank 1 ..F0B0--F",
        "",
        "rank 0 0--..B1--",
        "rank 1 1B1--....",
    ]


def test_every_action_of_folded_bands_names_its_microbatch() -> None:
    for costs in ({}, {"input_grad": Fraction("1.15"), "weight_grad": Fraction("0.9"), "hop": Fraction("0.02")}):
        step = replayed("zb_v", Case(4, 12, **costs))
        bands = grid_text(step, 80).plain.split("\n\n")
        assert len(bands) > 1
        assert all(len(line) <= 80 for band in bands for line in band.splitlines())
        for rank, row in enumerate(step.ranks):
            line = "".join(band.splitlines()[rank].removeprefix(f"rank {rank} ") for band in bands)
            shown = re.findall(r"[FIWfiw]\d+", line)
            first = min(timed.action.stage for timed in row)
            wanted = [(timed.action.kind.value, timed.action.stage, timed.action.microbatch) for timed in row]
            assert shown == [f"{kind if stage == first else kind.lower()}{index}" for kind, stage, index in wanted]


def test_four_columns_per_tick_show_where_actions_end() -> None:
    assert lines("1f1b", 200, 2, 2) == [
        "rank 0 F0--F1--........B0------....B1------",
        "rank 1 ....F0--B0------F1--B1------........",
    ]


def test_later_stages_have_small_letters() -> None:
    assert lines("zb_v", 200, 1, 1) == ["rank 0 F0--f0--i0--w0--I0--W0--"]


@pytest.mark.parametrize("width", [1, 8, 40, 79])
def test_a_very_long_step_is_scaled_to_the_width(width: int) -> None:
    for line in lines("zb_v", width, 4, 256):
        assert len(line) == max(width, 8)
        assert width < 40 or set("Ff") & set(line)


def test_colours_only_where_the_terminal_has_them() -> None:
    step = replayed("zb_h1", Case(2, 4))
    for is_terminal in (True, False):
        out = io.StringIO()
        Console(file=out, force_terminal=is_terminal, color_system="truecolor" if is_terminal else None).print(
            grid_text(step, 80)
        )
        assert ("\x1b[" in out.getvalue()) == is_terminal
    assert legend(step).plain.startswith(" F  forward")


def test_figures_below() -> None:
    found = figures(replayed("1f1b", Case(4, 8)))
    assert (found.makespan, found.bubble) == (Fraction(33), Fraction(3, 11))
    assert found.peaks == tuple(map(Fraction, (4, 3, 2, 1)))
    assert found.lines == ("makespan 33, bubble 27.27 %", "microbatches held at once, per rank: 4 3 2 1")
    assert num_messages(replayed("1f1b", Case(4, 8))) == 2 * 3 * 8


def test_images_are_well_formed_and_name_every_action() -> None:
    step = replayed("zb_h1", Case(2, 3))
    image = grid_svg(step, NASTY, figures(step).lines)
    root = ElementTree.fromstring(image)
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == sum(map(len, step.ranks))
    assert any(title.startswith("1F2: ") for title in titles)
    marks = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"0", "2", "10"} <= marks  # the time axis
    page = grid_html(step, NASTY)
    assert "<td>" not in page
    assert "</td>" not in page
    assert "\x1b" not in page
    assert page.count("http") == 1  # the name of SVG itself: nothing is loaded
