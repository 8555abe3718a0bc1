"""What `scripts/bench loading` calls a goal that is met, and that it sees memory that is filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import loading
from hybrid_runtime.hugging_face_config import shape_from_hugging_face
from hybrid_runtime.shapes import PRESETS, with_overrides
from hybrid_runtime.weights.source import Source


def test_the_worst_rank_counts() -> None:
    rank = {"before": 200 * loading.MB, "held": 1000 * loading.MB}
    met = loading.judged("a", [rank | {"peak": 1799 * loading.MB}, rank | {"peak": 200 * loading.MB}])
    missed = loading.judged("b", [rank | {"peak": 200 * loading.MB}, rank | {"peak": 1801 * loading.MB}])
    assert (met["goal_mb"], met["met"], missed["met"]) == (1600, True, False)
    table = loading.table_of([met, missed])
    assert "<= 1600: met" in table
    assert "<= 1600: missed" in table


def test_the_peak_of_what_was_filled_and_given_back() -> None:
    before = loading.resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    filled = bytearray(b"x") * (64 * loading.MB)
    del filled
    assert loading.resident("VmHWM") - before == pytest.approx(64 * loading.MB, rel=0.2)


def test_its_model_is_one_that_can_be_read(tmp_path: Path) -> None:
    shape = with_overrides(PRESETS["tiny"], loading.SMALL)
    loading.make_model(tmp_path / "model", shape)
    found = shape_from_hugging_face(tmp_path / "model")
    assert (found.vocab_size, found.num_layers) == (shape.vocab_size, shape.num_layers)
    with Source(tmp_path / "model") as source:
        assert source.file_of("model.norm.weight", (shape.hidden_size,)).entries
