"""Parts of a rank's program that need no other process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hybrid_runtime import job
from hybrid_runtime.errors import RunError, UsageError
from tests.planner.test_searched import plan_of


def test_ranks_with_different_plans_do_not_start() -> None:
    plan = plan_of("1f1b")
    groups: Any = SimpleNamespace(gather_objects=lambda mine: [mine, mine])
    job._demand_one_plan(plan, cast(Any, groups))
    groups.gather_objects = lambda mine: [mine, mine, "another"]
    with pytest.raises(RunError, match="rank 2 has another plan than rank 0"):
        job._demand_one_plan(plan, cast(Any, groups))


def test_ranks_with_different_tokens_do_not_start() -> None:
    groups: Any = SimpleNamespace(gather_objects=lambda mine: [mine, mine])
    data: Any = SimpleNamespace(contents=((1000, "ab"),))
    job._demand_one_data(data, groups)
    groups.gather_objects = lambda mine: [mine, ((1000, "cd"),)]
    with pytest.raises(UsageError, match=r"rank 1 has other tokens than rank 0 under the names in \[data\]; give all"):
        job._demand_one_data(data, groups)
