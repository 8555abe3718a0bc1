import threading
import time

import pytest
import torch

from hybrid_runtime.records import Wait
from hybrid_runtime.telemetry.cuda_clock import CudaClock
from tests.telemetry.examples import FakeStream

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


def clock_on(stream: FakeStream) -> CudaClock:
    return CudaClock(torch.device("cuda", 0), stream.make_event, stream.synchronize)


def test_device_times_become_host_times_within_the_window() -> None:
    stream = FakeStream()
    clock = clock_on(stream)
    stream.run(5000.0)  # an old device must not matter
    clock.begin_step()
    stream.run(20.0)  # well after the window's start, which the host knows later than the anchor
    clock.begin_span("0F0")
    stream.run(2.0)
    mark = clock.begin_wait()
    stream.run(3.0)
    clock.end_wait("all_reduce", mark)
    clock.end_span()
    stream.run(1.0)
    time.sleep(0.03)  # the device's 26 ms must fit into the host's window
    step = clock.end_step()
    (span,) = step.spans
    assert span.name == "0F0"
    assert span.cpu_ns == -1
    assert span.wait_ns == 3_000_000
    assert span.end_ns - span.start_ns == 5_000_000
    (wait,) = step.waits
    assert wait.end_ns - wait.start_ns == 3_000_000
    assert step.start_ns <= span.start_ns <= wait.start_ns <= wait.end_ns <= span.end_ns <= step.end_ns


def test_one_synchronisation_at_each_step_boundary_and_none_inside() -> None:
    stream = FakeStream()
    clock = clock_on(stream)
    clock.begin_step()
    assert stream.synchronized == 1
    for i in range(20):
        clock.begin_span(f"0F{i}")
        clock.end_wait("all_reduce", clock.begin_wait())
        clock.end_span()
    assert stream.synchronized == 1
    clock.end_step()
    assert stream.synchronized == 2


def test_events_are_pooled() -> None:
    stream = FakeStream()
    clock = clock_on(stream)
    for _ in range(3):
        clock.begin_step()
        for i in range(4):
            clock.begin_span(f"0F{i}")
            clock.end_wait("all_reduce", clock.begin_wait())
            clock.end_span()
        clock.end_step()
    assert stream.made == 1 + 4 * 4  # the anchor; two events a span and two a wait


def test_waits_may_come_from_autograds_thread_and_never_from_another_step() -> None:
    stream = FakeStream()
    clock = clock_on(stream)
    assert clock.begin_wait() is None  # a barrier between steps
    clock.end_wait("barrier", None)
    clock.begin_step()
    straddling = clock.begin_wait()
    clock.end_step()
    clock.end_wait("barrier", straddling)
    clock.begin_step()
    clock.end_wait("barrier", straddling)
    stream.run(20.0)
    clock.begin_span("0B0")

    def backward() -> None:
        for _ in range(50):
            mark = clock.begin_wait()
            stream.run(0.1)
            clock.end_wait("all_reduce", mark)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    clock.end_span()
    time.sleep(0.03)
    step = clock.end_step()
    assert len(step.waits) == 50
    assert {wait.name for wait in step.waits} == {"all_reduce"}
    assert step.spans[0].wait_ns == pytest.approx(5_000_000, abs=100)  # each end is rounded to a nanosecond


def test_rounding_of_the_anchor_cannot_leave_the_window() -> None:
    stream = FakeStream()
    clock = clock_on(stream)
    clock.begin_step()
    mark = clock.begin_wait()
    stream.run(60_000.0)  # a device that is ahead of the host by a minute
    clock.end_wait("all_reduce", mark)
    step = clock.end_step()
    assert step.waits == (Wait("all_reduce", step.start_ns, step.end_ns),)


@pytest.mark.gpu(1)
@needs_gpu
def test_on_a_gpu_the_device_time_of_matmuls_is_seen_without_waiting_for_them() -> None:
    device = torch.device("cuda", 0)
    clock = CudaClock(device)
    matrix = torch.randn(4096, 4096, device=device)
    matrix @ matrix
    for _ in range(2):
        clock.begin_step()
        clock.begin_span("0F0")
        launched_ns = time.monotonic_ns()
        for _ in range(50):
            matrix @ matrix
        launched_ns = time.monotonic_ns() - launched_ns
        clock.end_span()
        clock.begin_span("0F1")
        clock.end_wait("all_reduce", clock.begin_wait())
        clock.end_span()
        step = clock.end_step()
    work, idle = step.spans
    assert work.end_ns - work.start_ns > 10 * launched_ns or work.end_ns - work.start_ns > 10_000_000
    assert idle.end_ns - idle.start_ns < 1_000_000
    assert step.start_ns <= work.start_ns < work.end_ns <= idle.start_ns <= idle.end_ns <= step.end_ns
    assert work.end_ns - work.start_ns <= step.end_ns - step.start_ns
