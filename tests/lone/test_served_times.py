"""Units with items of requests, alone: everything that a plan asks for, and a plan made from it."""

from __future__ import annotations

import pytest
import torch

from hybrid_runtime.lone import served_times as measured
from hybrid_runtime.planner.serving_asked import asked_items
from tests.serving.deployments import serving

CPU = torch.device("cpu")


def test_every_unit_with_every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MOST_ROUNDS", 5)
    deployment = serving(search={"devices": 4}, load={"prompt_tokens": 24}, model={"num_layers": 1})
    told: list[str] = []
    rows, paces, left_out = measured.served_times(deployment, CPU, told.append)
    assert left_out == {}  # no plan has tp 4: six heads do not divide
    items, degrees = asked_items(deployment), {row.tp_degree for row in rows}
    assert degrees == {1, 2}
    for tp in degrees:
        whole = {(row.unit, row.kind, row.rows, row.start, row.length) for row in rows if row.tp_degree == tp}
        assert whole == {(unit, *item) for item in items for unit in ("embedding", "attn", "mlp", "head")}
        halves = [(row.unit, row.parts) for row in rows if row.tp_degree == tp and (row.unit, row.parts) not in WHOLE]
        assert sorted(halves) == [("attn", 3 // tp * tp), ("mlp", 128)]
    assert all(0 < row.time.p10_ns <= row.time.p50_ns <= row.time.p90_ns for row in rows)
    assert list(paces) == sorted(paces)
    assert len(paces) == 10
    assert 0 < paces[0] <= 10**6 <= paces[-1]
    assert told[-1].startswith("served units: round 5")


WHOLE = {("embedding", 1), ("attn", 6), ("mlp", 256), ("head", 1)}
