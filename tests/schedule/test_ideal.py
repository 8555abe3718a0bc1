from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.ideal import ideal_busy, least_microbatches
from hybrid_runtime.schedule.registry import SCHEDULES, find_schedule, generate
from hybrid_runtime.schedule.replay import replay


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("workload", ["train", "forward"])
def test_ideal_busy_is_what_the_replay_of_equal_stages_gives(name: str, workload: str) -> None:
    for pp_degree in (1, 2, 3, 4, 5, 6):
        for virtual_stages in (1, 2, 3) if SCHEDULES[name].any_virtual_stages else (None,):
            place = find_schedule(name).place(pp_degree, virtual_stages)
            durations = {(stage, kind): 2 if kind is Kind.B else 1 for stage in range(len(place)) for kind in Kind}
            for num_microbatches in {1, 2, pp_degree, 2 * pp_degree - 1, 2 * pp_degree, 5 * pp_degree}:
                try:
                    lists = generate(name, pp_degree, num_microbatches, workload, virtual_stages)
                except PlanError as problem:
                    with pytest.raises(PlanError, match=str(problem)):
                        ideal_busy(name, pp_degree, num_microbatches, workload, virtual_stages)
                    continue
                step = replay(lists, place, durations)
                share = ideal_busy(name, pp_degree, num_microbatches, workload, virtual_stages)
                assert [Fraction(busy) / step.makespan for busy in step.busy] == [share] * pp_degree


@pytest.mark.parametrize(
    ("name", "virtual_stages", "expected"),  # for 3, 4 and 8 ranks
    [
        ("gpipe", None, (38, 57, 133)),
        ("1f1b", None, (38, 57, 133)),
        ("interleaved_1f1b", None, (21, 32, 72)),  # 19 (p - 1) / 2 = 19, 28.5 and 66.5, but rounds are equal
        ("interleaved_1f1b", 4, (12, 15, 36)),
        ("zb_h1", None, (13, 19, 45)),
        ("zb_h2", None, (13, 19, 45)),
        ("interleaved_zb", None, (8, 10, 24)),
        ("zb_v", None, (7, 10, 23)),
        ("dualpipe_v", None, (7, 10, 23)),
        ("v_half", None, (23, 38, 83)),
        ("v_min", None, (29, 35, 86)),
    ],
)
def test_microbatches_for_95_percent(name: str, virtual_stages: int | None, expected: tuple[int, ...]) -> None:
    found = tuple(least_microbatches(name, p, Fraction(95, 100), "train", virtual_stages) for p in (3, 4, 8))
    assert found == expected


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("workload", ["train", "forward"])
def test_least_microbatches_is_the_least(name: str, workload: str) -> None:
    for pp_degree in (1, 2, 3, 5):
        for percent in (1, 30, 50, 60, 70, 80, 90):
            busy = Fraction(percent, 100)
            least = least_microbatches(name, pp_degree, busy, workload)
            assert ideal_busy(name, pp_degree, least, workload) >= busy
            for fewer in range(1, least):
                try:
                    assert ideal_busy(name, pp_degree, fewer, workload) < busy
                except PlanError:
                    assert name.startswith(("interleaved", "dualpipe"))


def test_full_use_is_out_of_reach() -> None:
    with pytest.raises(PlanError, match=r"100\.0% cannot be reached by 1f1b on 3 pipeline ranks"):
        least_microbatches("1f1b", 3, Fraction(1), "train")
    assert least_microbatches("1f1b", 1, Fraction(1), "train") == 1
