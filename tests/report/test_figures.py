"""One list of figures: every field of a line is in it once, and every sink draws from it."""

from __future__ import annotations

import pytest

from hybrid_runtime.report.figures import RANK_FIGURES, STEP_FIGURES, scalars
from hybrid_runtime.report.progress import ProgressLine
from tests.report.running import line, load

NO_FIGURES = {"step", "steps", "trained_before", "side", "phase", "busiest", "idlest", "ranks", "left_out"}


def test_every_figure_of_a_line_is_listed() -> None:
    assert {figure.name for figure in STEP_FIGURES} == set(ProgressLine.model_fields) - NO_FIGURES


def test_names_are_told_apart_and_carry_their_unit() -> None:
    metrics = [figure.metric for figure in (*STEP_FIGURES, *RANK_FIGURES)]
    assert len(set(metrics)) == len(metrics)
    endings = {"s": "seconds", "bytes": "bytes", "ratio": "ratio", "tokens/s": "tokens_per_second"}
    for figure in (*STEP_FIGURES, *RANK_FIGURES):
        assert figure.metric.endswith(endings.get(figure.unit, ""))
        assert figure.meaning.endswith(".")
        assert figure.source


def test_scalars_are_what_is_known() -> None:
    known = dict(scalars(line(3, mfu=0.42, learning_rate=3e-4, ranks=(load(2, memory_bytes=None),))))
    assert known == {
        "run/loss": 2.5126, "run/learning_rate": 3e-4, "run/tokens_per_s": 5342.7, "run/step_time_s": 0.3834,
        "run/mfu": 0.42, "busy_share/rank2": 0.52, "wait_share/rank2": 0.2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"mfu": 0.4213, "learning_rate": 3e-4, "grad_norm": 0.8123},
            "loss 2.513  norm 0.812  lr 0.0003  5 343 tokens/s  383 ms/step  MFU 42.1 %",
        ),
        ({"loss": None, "tokens_per_s": 0}, "383 ms/step  MFU n/a"),
    ],
)
def test_a_terminal_shows_what_is_known_and_says_n_a_of_a_peak_that_is_not(
    changes: dict[str, object], text: str
) -> None:
    assert line(3, **changes).overall() == text
