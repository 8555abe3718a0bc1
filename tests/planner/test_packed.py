"""Packed documents are planned as whole sequences, and the plan says by how much that may be off."""

from __future__ import annotations

import re

import pytest

from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.planned import plan_deployment
from tests.planner.planning import deployment


@pytest.mark.parametrize("length", [64, 1024])
def test_a_packed_run_is_told_how_much_less_it_may_take(length: int) -> None:
    batch = {"global_batch_size": 6, "microbatch_size": 1, "sequence_length": length}
    tables = {"batch": batch, "search": {"vary": ["cuts"]}}
    packed = deployment(data={"source": "corpus", "path": "corpus", "pack": True}, **tables)
    (said,) = [one for one in plan_deployment(packed, None).sentences if "data.pack" in one]
    assert packed.shape is not None
    costs = unit_costs(packed.shape, microbatch_size=1, sequence_length=length, workload="train")
    core = 3 * sum(cost.selective_recompute_flops for cost in costs)
    (part,) = re.findall(r"at most (\d+) % of all compute", said)
    assert abs(int(part) - 100 * core / sum(cost.flops for cost in costs)) < 2  # whole nanoseconds of a tiny model
    assert int(part) > 0
    assert not any("data.pack" in one for one in plan_deployment(deployment(**tables), None).sentences)
