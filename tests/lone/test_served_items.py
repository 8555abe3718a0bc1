"""What the engine adds to an item: everything that a plan asks for, on one rank and on two real ones."""

from __future__ import annotations

import pytest

from hybrid_runtime.calibration import ServedItemTimes
from hybrid_runtime.lone.served_items import served_on_one, served_on_two
from hybrid_runtime.planner.serving_asked import asked_rows
from tests.ranks import run_ranks
from tests.serving.deployments import serving

OF = serving(search={"devices": 2})


def test_on_one_rank() -> None:
    found = served_on_one(OF)
    assert [(one.ranks, one.rows) for one in found] == [("one", rows) for rows in asked_rows(OF)]
    for one in found:
        assert 0 < one.stage_ns < 10**8
        assert 0 < one.before_ns < 10**8
        assert (one.after_ns, one.back_ns, one.hops, one.decode_waits_ppm) == (0, 0, (), 0)


@pytest.mark.ranks
def test_on_two_ranks() -> None:
    run_ranks(2, _measures)


def _measures(rank: int) -> None:
    found = served_on_two(OF)
    assert [(one.ranks, one.rows) for one in found] == [
        (ranks, rows) for ranks in ("pipeline", "tensor") for rows in asked_rows(OF)
    ]
    for one in found:
        assert 0 < one.before_ns < 10**9
        _of_pipeline(one) if one.ranks == "pipeline" else _of_tensor(one)


def _of_pipeline(one: ServedItemTimes) -> None:
    for name in ("after_ns", "next_ns", "fetch_ns", "back_ns"):
        assert 0 <= getattr(one, name) < 10**9, name
    assert all(hop.num_bytes > 0 and hop.time_ns > 0 for hop in one.hops)
    assert one.decode_waits_ppm == 0


def _of_tensor(one: ServedItemTimes) -> None:
    assert one.prefill_waits_ppm > 0
    assert one.decode_waits_ppm > 0
    assert (one.after_ns, one.back_ns, one.hops) == (0, 0, ())
