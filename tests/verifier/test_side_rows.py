"""Plain figures of a side: model FLOPs utilisation from the records' peak rates, each device once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.planner.model_flops import model_flops
from hybrid_runtime.verdict import Side
from hybrid_runtime.verifier.metrics import measure
from hybrid_runtime.verifier.side import load_side
from hybrid_runtime.verifier.side_rows import side_row
from tests.verifier.synthetic import MS, steady, write_run

KNOWN = {"peak_flops_per_s": 10**9, "peak_source": "a data sheet"}


def row(folder: Path, **header: Any) -> tuple[Side, float]:
    """The row of two ranks with steps of 2 ms, and the utilisation it must show in percent."""
    run = write_run(folder, steady([MS] * 2, 20, window_ns=[2 * MS] * 20, header=header))
    side = load_side(run, "candidate")
    flops = model_flops(side.plan, side.deployment.shape) * 1024 / side.plan.tokens_per_step  # of the records' tokens
    return side_row(measure(side), None), 100 * flops / 0.002 / 2e9


def test_utilisation_is_model_flops_over_the_peak_of_all_devices(tmp_path: Path) -> None:
    found, expected = row(tmp_path, **KNOWN)
    assert float(found.mfu) == pytest.approx(expected, abs=0.01)
    assert found.mfu_peak == "a data sheet"


def test_a_device_without_a_known_peak_makes_it_unknown(tmp_path: Path) -> None:
    found, _ = row(tmp_path, peak_source="n/a: no peak rate is known for a CPU")
    assert (found.mfu, found.mfu_peak) == ("n/a: no peak rate is known for a CPU", "")
    assert row(tmp_path / "old")[0].mfu == "n/a: not recorded"


def test_an_impossible_peak_is_damage(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="impossible count"):
        row(tmp_path, peak_flops_per_s=0)
