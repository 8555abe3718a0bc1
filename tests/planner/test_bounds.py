"""What is known of a layout before it is cut, and in which words it is held against it."""

from __future__ import annotations

from typing import Any

import pytest

from hybrid_runtime.planner.bounds import opened
from hybrid_runtime.planner.candidates import layouts
from hybrid_runtime.planner.choose_plan import Found, _hopeless
from hybrid_runtime.planner.layout import Layout
from hybrid_runtime.planner.request import model_of, setting_of, space_of
from tests.planner.planning import deployment


@pytest.mark.parametrize(
    ("schedule", "forgets", "parallel", "estimated"),
    [
        ("1f1b", "none", {}, False),
        ("1f1b", "full", {}, True),  # held to its guess
        ("1f1b", "none", {"dp_degree": 2}, False),
        ("zb_v", "none", {}, False),
        ("zb_v", "none", {"dp_degree": 2}, True),  # the last sum may be of a stage that is lighter than the mean
    ],
)
def test_an_estimate_is_no_bound(schedule: str, forgets: Any, parallel: dict[str, int], estimated: bool) -> None:
    file = deployment(
        parallel={"pp_degree": 3} | parallel,
        pipeline={"schedule": schedule},
        batch={"global_batch_size": 12, "microbatch_size": 1, "sequence_length": 64},
        hardware={"memory_per_device": "4 GB"},
        search={"vary": ["recompute"]},
    )
    setting, model = setting_of(file), model_of(file, None)
    layout = next(one for one in layouts(space_of(file), setting) if isinstance(one, Layout))
    one, found = opened(layout.forgetting([forgets] * len(layout.stage_to_rank)), setting, model), Found()
    assert one.estimated == estimated
    assert (one.bound_ns == one.guess_ns) == (forgets != "none")
    assert not any(_hopeless(one, reached_ns, found) for reached_ns in (None, one.bound_ns + 1))
    assert _hopeless(one, one.bound_ns, found)
    words = "is not expected to take less than" if estimated else "cannot take less than"
    assert found.losers[0].why.startswith(words)
