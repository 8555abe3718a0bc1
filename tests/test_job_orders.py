"""Which steps a rank does, and what the model has seen of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hybrid_runtime.comm.axis import Clocks
from hybrid_runtime.job_orders import expected_steps, orders, plain_turns
from hybrid_runtime.records import PLANTED, SPEED, TRACE
from hybrid_runtime.turns import Turn
from tests.verifier.synthetic import deployment

DEPLOYED = deployment(measurement={"warmup_steps": 5, "block_steps": 2, "settle_steps": 1, "blocks": 3})


def groups() -> Any:
    place = SimpleNamespace(rank=0)
    return SimpleNamespace(barrier=lambda: None, gather_objects=lambda mine: [mine], place=place, clocks=Clocks())


class Given:
    """Turns from a list."""

    def __init__(self, turns: list[Turn]) -> None:
        self.turns = turns
        self.finished: list[int] = []

    def wait_for(self, block: int, timeout_s: float, still: object) -> Turn | None:
        return self.turns[block] if block < len(self.turns) else None

    def done(self, block: int) -> None:
        self.finished.append(block)


def test_planted_steps_are_recorded_but_the_model_does_not_see_them() -> None:
    """Candidate and baseline must see the same batch at the same step of the model."""
    given: Any = Given(
        [Turn("candidate", 0, TRACE, 3, 3), Turn("candidate", 1, PLANTED, 1, 2), Turn("candidate", 2, SPEED, 1, 3)]
    )
    done = list(orders(DEPLOYED, given, groups()))
    assert [order.step for order in done] == list(range(8))
    assert [order.trained for order in done if order.purpose != PLANTED] == list(range(6))
    assert [order.phase[0] for order in done] == list("wwwwmwmm")
    assert [order.watch for order in done] == [False, True, True] + [False] * 5
    assert given.finished == [0, 1, 2]


@pytest.mark.parametrize(("steps", "lengths"), [(8, [5, 3]), (5, [5]), (3, [3])])
def test_a_plain_run_is_warm_up_and_one_long_block(steps: int, lengths: list[int]) -> None:
    deployed = deployment(measurement={"warmup_steps": 5}, workload={"steps": steps})
    assert [turn.steps for turn in plain_turns(deployed)] == lengths
    assert expected_steps(deployed, "candidate", alternating=False) == steps
    assert {order.purpose for order in orders(deployed, None, groups())} == {TRACE}


def test_the_candidate_does_traced_and_bare_blocks() -> None:
    assert expected_steps(DEPLOYED, "baseline", alternating=True) == 5 + 3 * 3
    assert expected_steps(DEPLOYED, "candidate", alternating=True) == 5 + 3 * 2 * 3
