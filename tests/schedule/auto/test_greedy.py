"""Greedy orders: bubbles against figures computed independently, and limits down to a single microbatch."""

from __future__ import annotations

import pytest

from hybrid_runtime.schedule.auto.greedy import greedy_orders
from hybrid_runtime.schedule.auto.problem import make_problem, to_lists
from hybrid_runtime.schedule.placement import v_shape
from hybrid_runtime.schedule.replay import replay_step
from tests.schedule.auto.cases import v_costs


@pytest.mark.parametrize(
    ("pp_degree", "num_microbatches", "limit", "percent"),
    [(3, 8, 8, "4.98"), (4, 12, 8, "9.33"), (4, 12, 10, "4.97"), (8, 28, 16, "12.46"), (8, 28, 18, "9.16")],
)
def test_bubbles(pp_degree: int, num_microbatches: int, limit: int, percent: str) -> None:
    costs = v_costs(pp_degree)
    problem = make_problem(v_shape(pp_degree), num_microbatches, costs, [limit] * pp_degree)
    steps = [replay_step(to_lists(order, problem), v_shape(pp_degree), costs) for order in greedy_orders(problem)]
    assert all(peak.num_bytes <= limit for step in steps for peak in step.peaks)
    assert f"{float(100 * min(step.bubble for step in steps)):.2f}" == percent


@pytest.mark.parametrize("limit", [2, 3, 4, 5])
def test_tight_limits_do_not_deadlock(limit: int) -> None:
    costs = v_costs(4)
    problem = make_problem(v_shape(4), 5, costs, [limit] * 4)
    found = [to_lists(order, problem) for order in greedy_orders(problem)]
    assert found
    for lists in found:
        assert max(peak.num_bytes for peak in replay_step(lists, v_shape(4), costs).peaks) <= limit


def test_no_order_where_nothing_fits() -> None:
    assert not list(greedy_orders(make_problem(v_shape(2), 2, v_costs(2), [4, 1])))
