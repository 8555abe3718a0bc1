from __future__ import annotations

import pytest

from hybrid_runtime.deployment import Optimizer
from hybrid_runtime.training.learning_rate import learning_rate, rate_at


def rates(warmup_steps: int, steps: int) -> list[float]:
    return [learning_rate(k, peak=1.0, final=0.1, warmup_steps=warmup_steps, steps=steps) for k in range(steps + 2)]


def test_warms_up_linearly_then_falls_to_the_final_rate() -> None:
    found = rates(4, 10)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4] == pytest.approx(1.0)
    assert found[3:10] == sorted(found[3:10], reverse=True)
    assert found[9] == pytest.approx(0.1)


def test_stays_at_the_final_rate_beyond_the_schedule() -> None:
    assert rates(0, 5)[5:] == pytest.approx([0.1, 0.1])


def test_no_warm_up_and_a_single_step() -> None:
    assert rates(0, 1)[0] == pytest.approx(1.0)


def test_a_line_and_no_way_down() -> None:
    def at(schedule: str, step: int) -> float:
        return learning_rate(step, peak=1.0, final=0.2, warmup_steps=2, steps=7, schedule=schedule)

    assert [at("linear", step) for step in range(8)] == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert [at("constant", step) for step in range(8)] == pytest.approx([0.5, *[1] * 7])


def test_a_schedule_of_its_own_length_does_not_change_when_the_run_gets_longer() -> None:
    own = Optimizer(schedule="linear", decay_steps=50, warmup_steps=3)
    assert [rate_at(k, own, 20) for k in range(60)] == [rate_at(k, own, 60) for k in range(60)]
    runs = Optimizer(schedule="linear", warmup_steps=3)
    assert rate_at(19, runs, 20) == 0
    assert rate_at(19, runs, 60) > 0
    assert [rate_at(k, runs, 50) for k in range(60)] == [rate_at(k, own, 20) for k in range(60)]


def test_warm_up_longer_than_the_run() -> None:
    assert rates(10, 5)[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
