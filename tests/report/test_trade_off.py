"""TP against PP, in characters and on the page."""

from __future__ import annotations

from hybrid_runtime.planner.serving_plan import plan_serving
from hybrid_runtime.predicted_serving import TradeOff
from hybrid_runtime.report.page.trade_off import figure_of
from hybrid_runtime.report.trade_off import trade_off_lines
from tests.serving.deployments import serving


def point(tp: int, pp: int, latency_ms: int, rate: int) -> TradeOff:
    return TradeOff(
        tp_degree=tp,
        pp_degree=pp,
        microbatch_size=1,
        prefill_chunk_tokens=None,
        latency_ns=latency_ms * 10**6,
        tokens_per_s=str(rate),
    )


def test_in_characters() -> None:
    points = [point(2, 1, 100, 200), point(1, 2, 200, 400), point(2, 1, 150, 300)]
    assert trade_off_lines(points, width=11, height=3) == [
        "tokens/s",
        "400 |          a",
        "    |     b",
        "200 |B",
        "    +-----------",
        "     100 ms200 ms",
        "a tp 1 x pp 2; b tp 2 x pp 1; the plan is the capital one",
    ]
    assert trade_off_lines(points[::2]) == []


def test_on_the_page() -> None:
    plan = plan_serving(serving(search={"devices": 2}), None).plan
    figure = figure_of(plan)
    assert figure is not None
    [view] = figure.views
    assert [trace["name"] for trace in view.traces] == ["tp 1 x pp 2", "tp 2 x pp 1", "the plan"]
    assert plan.predicted is not None
    serving_part = plan.predicted.serving
    assert serving_part is not None
    assert sum(len(trace["x"]) for trace in view.traces) == len(serving_part.trade_offs) + 1
    assert figure_of(plan_serving(serving(), None).plan) is None  # one device: nothing to trade
