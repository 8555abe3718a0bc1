"""Figures as people read them."""

from __future__ import annotations

import pytest

from hybrid_runtime.report import cells
from hybrid_runtime.verdict_measured import Evidence, Measured
from tests.report import examples


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (12_595_200, "12.0 MiB"), (5 << 40, "5.0 TiB")],
)
def test_bytes(size_bytes: int, shown: str) -> None:
    assert cells.bytes_text(size_bytes) == shown


@pytest.mark.parametrize(
    ("duration_s", "shown"),
    [(0, "0 µs"), (2.5e-7, "0.25 µs"), (8.34e-5, "83.4 µs"), (0.0834, "83.4 ms"), (1.5, "1.5 s"), (1234.5, "1234 s")],
)
def test_durations(duration_s: float, shown: str) -> None:
    assert cells.duration_text(duration_s) == shown


@pytest.mark.parametrize(("per_s", "shown"), [(0.1234, "0.123"), (99.5, "99.5"), (12345.6, "12 346")])
def test_rates(per_s: float, shown: str) -> None:
    assert cells.rate_text(per_s) == shown


@pytest.mark.parametrize(
    ("numbers", "shown"), [((), "-"), ((3,), "3"), ((0, 1, 2, 5), "0-2, 5"), ((0, 2, 4), "0, 2, 4"), ((6, 7), "6-7")]
)
def test_ranges(numbers: tuple[int, ...], shown: str) -> None:
    assert cells.ranges_text(numbers) == shown


def test_control_characters_are_written_out() -> None:
    assert cells.printable("a\x1b[2J\rb\u202ec\nd") == "a\\x1b[2J\\x0db\\x202ec\nd"


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ({"PASS": 1, "FAIL": 0, "total": 1}, "1 passed of 1 requirement"),
        ({"PASS": 2, "ERROR": 1, "total": 3}, "2 passed, 1 ended in an error of 3 requirements"),
        ({}, "none judged of 0 requirements"),
    ],
)
def test_counts(counts: dict[str, int], shown: str) -> None:
    assert cells.counts_text(counts) == shown


def test_what_is_no_number_is_shown_as_it_is() -> None:
    side = examples.side("candidate", "candidate", "tp 1 x pp 1 x dp 1", "0.1", "n/a: forward only")
    assert ("tokens/s", "n/a: forward only") in cells.side_rows([side])


@pytest.mark.parametrize(
    ("evidence", "shown"), [("deterministic", "7.9 pp (exact)"), ("measured", "7.9 pp (no interval)")]
)
def test_what_was_measured_is_never_exact(evidence: Evidence, shown: str) -> None:
    one = Measured(
        point="7.9",
        exact="79/10",
        lower="7.9",
        upper="7.9",
        confidence="0.95",
        method="one pair",
        samples=1,
        hardware="cpu",
        evidence=evidence,
    )
    assert cells.measured_text(one, "pp") == shown


def test_utilisation_against_a_declared_peak_says_so() -> None:
    side = examples.side("candidate", "candidate", "tp 1 x pp 1 x dp 1", "0.1", "100")
    for peak, shown in (("NVIDIA A100 data sheet", "41.26 %"), ("declared: [telemetry] x", "41.26 % (declared peak)")):
        rated = side.model_copy(update={"mfu": "41.26", "mfu_peak": peak})
        assert ("MFU", shown) in cells.side_rows([rated])
    assert ("MFU", "n/a: not recorded") in cells.side_rows([side])
