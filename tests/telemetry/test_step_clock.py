import time

import pytest

from hybrid_runtime.records import Span, Wait
from hybrid_runtime.telemetry.step_clock import HostClock, assemble


def span(name: str, start: int, end: int, wait: int = 0) -> Span:
    return Span(name, start, end, 0, wait)


def test_waits_are_charged_to_the_span_they_lie_in() -> None:
    #           0    10        30    40   50        70   80
    # spans          |-- 0F0 --|          |-- 0B0 --|
    # waits             15-20     32-38    50-55 60-70
    waits = [Wait("b", 50, 55), Wait("a", 15, 20), Wait("recv", 32, 38), Wait("b", 60, 70)]
    step = assemble(0, 80, [span("0F0", 10, 30), span("0B0", 50, 70)], waits)
    assert step.spans == (span("0F0", 10, 30, 5), span("0B0", 50, 70, 15))
    assert [wait.name for wait in step.waits] == ["a", "recv", "b", "b"]


def test_a_wait_across_a_span_boundary_is_split_exactly() -> None:
    step = assemble(0, 80, [span("0F0", 10, 30), span("0B0", 30, 70)], [Wait("w", 5, 12), Wait("w", 25, 33)])
    assert [one.wait_ns for one in step.spans] == [7, 3]


def test_overlapping_waits_count_once() -> None:
    waits = [Wait("inner", 12, 14), Wait("outer", 10, 20), Wait("thread", 18, 25), Wait("next", 25, 26)]
    step = assemble(0, 30, [span("0F0", 0, 30)], waits)
    assert step.waits == (Wait("outer", 10, 25), Wait("next", 25, 26))
    assert step.spans[0].wait_ns == 16


def test_sleeping_costs_wall_time_and_no_cpu_time() -> None:
    clock = HostClock()
    before = clock.begin_wait()
    clock.begin_step()
    clock.end_wait("barrier", before)  # straddles the start: not this step's
    clock.begin_span("0F0")
    mark = clock.begin_wait()
    time.sleep(0.02)
    clock.end_wait("all_reduce", mark)
    clock.end_span()
    clock.begin_span("0B0")
    ends = time.thread_time_ns() + 5_000_000
    while time.thread_time_ns() < ends:
        continue
    clock.end_span()
    step = clock.end_step()
    forward, backward = step.spans
    assert forward.end_ns - forward.start_ns >= forward.wait_ns >= 20_000_000
    assert 0 <= forward.cpu_ns < 5_000_000 <= backward.cpu_ns <= backward.end_ns - backward.start_ns
    assert backward.wait_ns == 0
    assert [wait.name for wait in step.waits] == ["all_reduce"]
    assert step.start_ns <= forward.start_ns <= backward.end_ns <= step.end_ns


def test_spans_do_not_nest() -> None:
    clock = HostClock()
    clock.begin_step()
    clock.begin_span("0F0")
    with pytest.raises(AssertionError, match="0F1 begins inside 0F0"):
        clock.begin_span("0F1")
    clock.begin_step()  # a new step starts afresh
    clock.begin_span("0F1")
