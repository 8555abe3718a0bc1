"""Parts of a validation that need no other process; what it computes is tested in test_parity_packed.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from hybrid_runtime.comm.axis import Clocks, NoClock
from hybrid_runtime.data.sampler import Batches
from hybrid_runtime.data.tokens import ArrayTokens
from hybrid_runtime.errors import UsageError
from hybrid_runtime.job_progress import RankNumbers
from hybrid_runtime.job_validation import Validation, _refuse_too_few, _undisturbed


def batches(num_tokens: int) -> Batches:
    source = ArrayTokens("kept", 9, np.zeros(num_tokens, dtype=np.uint8))
    return Batches(source, global_batch_size=4, microbatch_size=2, sequence_length=10)


def test_no_sample_is_validated_with_twice() -> None:
    _refuse_too_few(batches(81), 2)
    with pytest.raises(
        UsageError, match=r"kept: has 7 samples of 10 tokens .* 8 are .*validation_batches = 2\); lower"
    ):
        _refuse_too_few(batches(80), 2)


def test_it_is_time_after_so_many_steps_and_after_the_last_and_not_before_leaving() -> None:
    told = SimpleNamespace(run_step=lambda *_: None)
    groups: Any = SimpleNamespace(clocks=Clocks(), gather_numbers=lambda mine: [[1.0, 6.0]])
    mesh = SimpleNamespace(dp_degree=1, rank=lambda **_: 0)
    plan: Any = SimpleNamespace(mesh=mesh, stage_to_rank=(0,))
    executor: Any = told
    validation = Validation(3, 7, 1, executor, batches(81), {}, groups, plan)
    losses = [validation.after_step(trained) for trained in range(1, 8)]
    assert [trained for trained, loss in enumerate(losses, 1) if loss is not None] == [3, 6, 7]
    assert losses[2] == 6 / 40
    leaving = RankNumbers(0, 0, 0, 0, 0, asked_to_stop=1)
    assert validation.after_step(3, [leaving]) is None


def test_waits_are_not_recorded_and_dropout_is_off_and_both_come_back() -> None:
    clock = NoClock()
    groups: Any = SimpleNamespace(clocks=Clocks(clock))
    unit = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def fail() -> None:
        with _undisturbed(groups, {"unit": unit}):
            assert groups.clocks.current is not clock
            assert not any(module.training for module in unit.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert groups.clocks.current is clock
    assert [module.training for module in unit.modules()] == [True, True, False]
