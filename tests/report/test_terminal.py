"""The terminal form says everything at any width, cuts no reason, and lets no name out of its place."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from hybrid_runtime.report.terminal import ShareBar, check_table, print_plainly, print_verdict
from hybrid_runtime.verdict import Outcome, Verdict
from tests.report import examples


def plain(verdict: Verdict, width: int = 100) -> str:
    stream = io.StringIO()
    print_verdict(verdict, Console(file=stream, width=width))
    return stream.getvalue()


def coloured(verdict: Verdict, width: int = 100) -> str:
    stream = io.StringIO()
    print_verdict(verdict, Console(file=stream, width=width, force_terminal=True, color_system="standard"))
    return stream.getvalue()


def words(text: str) -> str:
    """The text without what wrapping added: comparing words says whether something was cut."""
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_plain_text_fits_and_holds_no_colour_box_or_trailing_blank(width: int) -> None:
    text = plain(examples.verdict(), width)
    assert "\x1b" not in text
    assert not re.search("[─-▟…]", text)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_reasons_and_figures_are_whole_at_every_width(width: int) -> None:
    text = words(plain(examples.verdict(), width))
    assert words(examples.LONG_REASON) in text
    assert "oversubscribed: 6 ranks share" in text
    for shown in ("≤ 1 pp", "0.42 pp [0.12, 0.71]", "7.9 pp (exact)", "not measured", "16.40 %", "17.90 %", "12.0 MiB"):
        assert shown in text
    assert "declared: 33%_computation, 33%_computation, 34%_computation" in text
    assert "CPU, shared cores" in text


def test_the_last_line_is_the_verdict_with_derived_counts() -> None:
    assert plain(examples.verdict(), 120).splitlines()[-1] == (
        "FAIL: demo: 2 passed, 2 failed, 3 inconclusive, 1 not applicable of 8 requirements (exit code 1)"
    )


def test_a_terminal_gets_colours_and_bars() -> None:
    text = coloured(examples.verdict())
    assert "\x1b[1;31mFAIL" in text
    assert "\x1b[1;32mPASS" in text
    assert "█" in text


@pytest.mark.parametrize("draw", [plain, coloured])
def test_names_are_shown_as_they_are_written(draw: object) -> None:
    assert callable(draw)
    text = draw(examples.verdict(), 200)
    assert r"throughput [red]x</td>|`*\x1b[31m" in text
    assert "\x1b[31mx" not in text


def test_sides_stand_next_to_each_other() -> None:
    text = plain(examples.verdict())
    assert re.search(r"^step time \(median\)\s+383 ms\s+442 ms$", text, re.MULTILINE)
    assert re.search(r"^ +candidate +baseline: pp_only$", text, re.MULTILINE)


def test_equal_driver_readings_are_said_once_and_different_ones_each() -> None:
    assert plain(examples.verdict()).count("no NVIDIA driver\n") == 1
    gpus = tuple(
        examples.device(rank, id=f"GPU-{'8f3a' * 8}-{rank}", nvml=f"utilisation {90 + rank} %") for rank in range(2)
    )
    text = words(plain(examples.verdict(devices=gpus), 80))
    assert f"NVML, GPU-{'8f3a' * 8}-0: utilisation utilisation 90 %" in text
    assert "utilisation 91 %" in text


def test_only_what_there_is_gets_a_table() -> None:
    text = plain(examples.verdict(claims=(), devices=(), sides=(), warnings=(), counts={"total": 0}))
    assert "checks before any process starts" in text
    for title in ("claims", "devices", "what ran", "warning"):
        assert f"\n{title}" not in text


def test_missing_memory_is_not_a_zero() -> None:
    row = examples.device(0).model_copy(update={"memory_bytes": None, "memory_share": None, "memory_parts": {}})
    text = plain(examples.verdict(devices=(row,)))
    assert re.search(r"^0 +n/a +n/a$", text, re.MULTILINE)


def test_checks_alone_for_the_check_command() -> None:
    stream = io.StringIO()
    print_plainly(check_table("[red]demo", examples.CHECKS), Console(file=stream, width=80))
    assert stream.getvalue().startswith("\n[red]demo: checks before any process starts\n")
    assert stream.getvalue().count("\nFAIL") == 1
    assert "exactly 1 pp" in words(stream.getvalue())


def test_a_stream_that_is_not_unicode_does_not_fail() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_verdict(examples.verdict(), Console(file=stream, width=100))
    stream.flush()
    assert b"? 1 pp" in raw.getvalue()


@pytest.mark.parametrize(("width", "shown"), [(40, "#####- "), (11, "#-  "), (8, "")])
def test_a_narrow_column_shortens_the_bar_and_never_the_figure(width: int, shown: str) -> None:
    stream = io.StringIO()
    Console(file=stream, width=width).print(ShareBar(0.55, "33.33 %"))
    assert stream.getvalue().rstrip("\n").endswith("33.33 %")
    assert stream.getvalue().startswith(shown)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_can_be_drawn(outcome: Outcome) -> None:
    assert plain(examples.verdict(verdict=outcome), 200).splitlines()[-1].startswith(f"{outcome}: demo")


@pytest.mark.alone
def test_importing_it_is_quick_and_needs_no_torch() -> None:
    probe = (
        "import sys, time; start = time.process_time(); import hybrid_runtime.report.terminal\n"
        "spent_s = time.process_time() - start; assert 'torch' not in sys.modules; assert spent_s < 0.5, spent_s"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)
