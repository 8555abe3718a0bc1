"""Long lists are replayed by compiled code, fast."""

from __future__ import annotations

import time

import pytest

from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.one_f_one_b import one_f_one_b
from hybrid_runtime.schedule.replay import COMPILED_FROM, replay_rows
from hybrid_runtime.schedule.rows import to_rows
from hybrid_runtime.schedule.step_costs import Hop, StepCosts


@pytest.mark.alone
def test_two_million_actions_a_second() -> None:
    rows = to_rows(one_f_one_b(8, 4000), range(8))
    assert len(rows.actions) > COMPILED_FROM
    num_compute = sum(action.kind.is_compute for action in rows.actions)
    rates = []
    for number in range(6):  # the first one compiles
        durations = {(stage, kind): 10 + number + stage for stage in range(8) for kind in Kind}
        start = time.process_time()
        replay_rows(rows, StepCosts(durations, hop=Hop(latency=1)))
        rates.append(num_compute / (time.process_time() - start))
    assert max(rates) >= 2_000_000, rates
