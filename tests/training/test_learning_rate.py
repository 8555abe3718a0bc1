from __future__ import annotations

import pytest

from hybrid_runtime.training.learning_rate import learning_rate


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


def test_warm_up_longer_than_the_run() -> None:
    assert rates(10, 5)[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
