"""Units are also measured as they forget: whole ones, at the file's own microbatch size, where a plan will ask."""

from __future__ import annotations

import pytest
import torch

from hybrid_runtime.calibration import UnitTimes
from hybrid_runtime.lone import unit_times
from tests.parity import deployment


def measured(vary: list[str]) -> list[UnitTimes]:
    settings = deployment(
        model={"num_layers": 2, "hidden_size": 64, "num_kv_heads": 4, "ffn_size": 64},
        parallel={"pp_degree": 2},
        pipeline={"schedule": "1f1b"},
        batch={"global_batch_size": 4, "microbatch_size": 2, "sequence_length": 32},
        search={"vary": vary},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_times, "ROUNDS", 1)
        patch.setattr(unit_times, "MOST_ROUNDS", 1)
        rows, _ = unit_times.unit_times(unit_times.wanted_of(settings, torch.device("cpu")), lambda _: None)
    return rows


def test_units_that_forget_are_measured_where_a_plan_will_ask() -> None:
    rows = measured(["recompute"])
    whole = {
        (row.unit, row.recompute): row for row in sorted(rows, key=lambda row: row.parts) if row.microbatch_size == 2
    }
    asked = {(row.unit, row.recompute, row.microbatch_size) for row in rows if row.recompute != "none"}
    assert asked == {(unit, kind, 2) for unit in ("attn", "mlp") for kind in ("selective", "full")}
    for unit in ("attn", "mlp"):
        none, selective, full = (whole[unit, kind].saved_bytes for kind in ("none", "selective", "full"))
        assert none > selective > full
    assert {row.recompute for row in measured([])} == {"none"}
