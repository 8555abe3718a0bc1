from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.registry import SCHEDULES, find_schedule, generate, ideal_busy, least_microbatches
from hybrid_runtime.schedule.replay import replay


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"'1f1p': no such schedule; did you mean '1f1b'\? known are gpipe, 1f1b"):
        find_schedule("1f1p")
    with pytest.raises(PlanError, match="did you mean 'gpipe'"):
        generate("GPipes", 2, 2, "train")


def test_nothing_to_schedule_is_an_error() -> None:
    with pytest.raises(PlanError, match="at least 1 pipeline rank and 1 microbatch, not 2 and 0"):
        generate("1f1b", 2, 0, "train")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("workload", ["train", "forward"])
def test_ideal_busy_is_what_the_replay_of_equal_stages_gives(name: str, workload: str) -> None:
    for pp_degree in (1, 2, 3, 5):
        durations = {(stage, kind): 2 if kind is Kind.B else 1 for stage in range(pp_degree) for kind in Kind}
        for num_microbatches in (1, 2, 4, 9):
            lists = generate(name, pp_degree, num_microbatches, workload)
            step = replay(lists, find_schedule(name).place(pp_degree), durations)
            share = ideal_busy(name, pp_degree, num_microbatches, workload)
            assert [Fraction(busy) / step.makespan for busy in step.busy] == [share] * pp_degree


@pytest.mark.parametrize(("pp_degree", "at_90", "at_95"), [(3, 18, 38), (4, 27, 57), (8, 63, 133), (1, 1, 1)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_least_microbatches(name: str, pp_degree: int, at_90: int, at_95: int) -> None:
    assert least_microbatches(name, pp_degree, Fraction(90, 100), "train") == at_90
    assert least_microbatches(name, pp_degree, Fraction(95, 100), "forward") == at_95


def test_least_microbatches_is_the_least() -> None:
    for percent in range(1, 100):
        busy = Fraction(percent, 100)
        least = least_microbatches("1f1b", 4, busy, "train")
        assert ideal_busy("1f1b", 4, least, "train") >= busy
        assert least == 1 or ideal_busy("1f1b", 4, least - 1, "train") < busy


def test_full_use_is_out_of_reach() -> None:
    with pytest.raises(PlanError, match=r"100\.0% cannot be reached by 1f1b on 3 pipeline ranks"):
        least_microbatches("1f1b", 3, Fraction(1), "train")
