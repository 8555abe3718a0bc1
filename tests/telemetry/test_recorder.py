import json
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import backward

from hybrid_runtime.comm.axis import Axis, Clocks, NoClock
from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.records import DATA, OPTIMIZER, REDUCE_GRAD, Span, Wait, read_rank
from hybrid_runtime.telemetry.cuda_clock import CudaClock
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.telemetry.recorder import NullRecorder, Recorder, StepSummary, summary_of
from hybrid_runtime.telemetry.status import Status, StatusFile, read_status
from hybrid_runtime.telemetry.step_clock import Measured
from tests.telemetry.examples import FakeStream, header

CPU = torch.device("cpu")


def path_in(folder: Path) -> Path:
    return folder / "records" / "rank3.jsonl"


def test_a_run_of_three_steps_reads_back(tmp_path: Path) -> None:
    model = nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    clocks = Clocks()
    axis = Axis(clocks=clocks)
    ledger = ByteLedger(model.parameters(), optimizer)
    with closing(Recorder(header(), path_in(tmp_path), CPU, clocks, ledger)) as rec:
        for step in range(3):
            rec.begin_step(step, block=step, phase="measure" if step else "warmup", ledger=step == 0)
            with rec.span(DATA):
                inputs = torch.randn(4, 8)
            with rec.span("1F0"), axis.waiting("all_reduce"):
                loss = model(inputs).square().sum()
            with axis.waiting("1RECV_B0"):
                time.sleep(0.001)
            with rec.span("1B0"):
                backward(loss)
            with rec.span(OPTIMIZER):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            summary = rec.close_window()
            time.sleep(0.02)  # telling the loss to others is not part of the step
            assert rec.end_step(loss=loss.detach(), grad_norm=0.5, tokens=32) == summary
            assert summary.busy_ns is not None
            assert summary.wait_ns is not None
            assert 0 < summary.busy_ns < summary.window_ns
            assert 1_000_000 < summary.wait_ns < summary.window_ns
        rec.finish()
    assert isinstance(clocks.current, NoClock)
    records = read_rank(path_in(tmp_path))
    assert records.header == header()
    assert records.footer is not None
    assert records.footer.steps == 3
    assert [(one.step, one.block, one.phase, one.ledger) for one in records.steps] == [
        (0, 0, "warmup", True),
        (1, 1, "measure", False),
        (2, 2, "measure", False),
    ]
    first, second, _ = records.steps
    assert [span.name for span in first.spans] == [DATA, "1F0", "1B0", OPTIMIZER]
    assert first.end_ns <= second.start_ns - 20_000_000
    assert [wait.name for wait in first.waits] == ["all_reduce", "1RECV_B0"]
    assert first.spans[1].wait_ns == first.waits[0].end_ns - first.waits[0].start_ns > 0
    assert first.spans[2].wait_ns == 0
    assert first.grad_norm == "0.5"
    assert float(str(first.loss)) > 0
    assert first.switches >= 0
    # Gradients are weighed before the update clears them. AdamW keeps two moments and a 4-byte count.
    assert (first.memory.parameters, first.memory.gradients, first.memory.optimizer) == (256, 256, 516)
    activations = 4 * 8 * 4 * 2  # the input for the weight's gradient, the output for the square's
    assert first.memory.activations_peak == activations
    assert first.memory.ledger_peak == 256 + 256 + 516 + activations
    assert second.memory.activations_peak is None
    assert second.memory.ledger_peak is None
    assert second.memory.optimizer == 516
    assert read_status(tmp_path / "status" / "rank3") == Status(3, 2, "1", "finished")


def test_an_error_in_a_span_leaves_its_name_whole_lines_and_no_hooks(tmp_path: Path) -> None:
    clocks = Clocks()
    ledger = ByteLedger(())
    with closing(Recorder(header(), path_in(tmp_path), CPU, clocks, ledger)) as rec:
        rec.begin_step(0)
        with rec.span("1F0"):
            pass
        rec.end_step(tokens=1)
        rec.begin_step(1, ledger=True)
        with pytest.raises(ZeroDivisionError), rec.span("1F1"):
            raise ZeroDivisionError
    assert rec.current == "1F1"
    assert read_status(tmp_path / "status" / "rank3") == Status(3, 1, "1", "1F1")
    assert isinstance(clocks.current, NoClock)
    records = read_rank(path_in(tmp_path))
    assert len(records.steps) == 1
    assert records.footer is None
    torch.ones(3, requires_grad=True).exp()
    assert ledger.in_use == (0, 0, 0)


def test_each_line_is_on_disk_when_its_step_is_over(tmp_path: Path) -> None:
    with closing(Recorder(header(), path_in(tmp_path), CPU, Clocks(), ByteLedger(()))) as rec:
        for step in range(3):
            rec.begin_step(step)
            rec.note("1SEND_F0")
            rec.end_step(tokens=1)
            lines = path_in(tmp_path).read_text().splitlines()
            assert [json.loads(line)["type"] for line in lines] == ["header"] + ["step"] * (step + 1)
            assert rec.current == "1SEND_F0"


def test_busy_counts_compute_only() -> None:
    spans = (
        Span(DATA, 0, 5, 0, 0),
        Span("1F0", 10, 30, 0, 5),
        Span(REDUCE_GRAD, 30, 50, 0, 15),
        Span(OPTIMIZER, 50, 60, 0, 0),
    )
    measured = Measured(0, 100, spans, (Wait("a", 12, 17), Wait("b", 30, 45), Wait("c", 70, 90)))
    assert summary_of(measured) == StepSummary(busy_ns=15 + 10, wait_ns=5 + 15 + 20, window_ns=100)


def test_a_span_that_changes_its_name_is_written_as_several(tmp_path: Path) -> None:
    with closing(Recorder(header(), path_in(tmp_path), CPU, Clocks(), ByteLedger(()))) as rec:
        rec.begin_step(0)
        with rec.span("1I3"):
            rec.change_span("1W0")
            time.sleep(0.002)
            rec.change_span("1I3")
            assert rec.current == "1I3"
            time.sleep(0.001)
        rec.end_step(tokens=1)
        rec.finish()
    spans = read_rank(path_in(tmp_path)).steps[0].spans
    assert [span.name for span in spans] == ["1I3", "1W0", "1I3"]
    assert all(one.end_ns <= two.start_ns for one, two in pairwise(spans))
    assert spans[1].end_ns - spans[1].start_ns >= 2_000_000
    assert spans[2].end_ns - spans[2].start_ns >= 1_000_000


def test_a_cuda_clock_plugs_in(tmp_path: Path) -> None:
    stream = FakeStream()
    clock = CudaClock(torch.device("cuda", 0), stream.make_event, stream.synchronize)
    clocks = Clocks()
    with closing(Recorder(header(), path_in(tmp_path), CPU, clocks, ByteLedger(()), clock)) as rec:
        rec.begin_step(0)
        stream.run(20.0)
        with rec.span("1F0"), Axis(clocks=clocks).waiting("all_reduce"):
            stream.run(1.0)
        time.sleep(0.03)
        rec.end_step(tokens=1)
    (step,) = read_rank(path_in(tmp_path)).steps
    assert step.spans[0].cpu_ns == -1
    assert step.waits[0].end_ns - step.waits[0].start_ns == 1_000_000


def test_telemetry_off_still_times_the_step_and_says_what_is_done(tmp_path: Path) -> None:
    status = tmp_path / "rank0"
    with closing(NullRecorder(CPU, StatusFile(status, 0, (0,)))) as rec:
        rec.begin_step(4, block=1, phase="measure", ledger=False)
        with rec.span("0F7"):
            time.sleep(0.001)
        summary = rec.close_window()
        assert (summary.busy_ns, summary.wait_ns) == (None, None)
        assert 1_000_000 <= summary.window_ns < 1_000_000_000
        assert rec.end_step(loss=1.0, grad_norm=None, tokens=3) == summary
        rec.begin_step(5)
        assert rec.end_step(tokens=3) != summary
        assert rec.current == "0F7"
        assert read_status(status) == Status(0, 5, "0", "0F7")
    with closing(NullRecorder(CPU)) as rec, rec.span("0F8"):
        assert rec.current == "0F8"


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    with pytest.raises(EnvironmentProblem, match="records cannot be written \\(No space left on device\\)"):
        Recorder(header(), path_in(tmp_path), CPU, Clocks(), ByteLedger(()))


def test_a_folder_in_the_way_is_said_in_a_sentence(tmp_path: Path) -> None:
    path_in(tmp_path).mkdir(parents=True)
    with pytest.raises(EnvironmentProblem, match=r"rank3\.jsonl: the records cannot be written"):
        Recorder(header(), path_in(tmp_path), CPU, Clocks(), ByteLedger(()))


@pytest.mark.gpu(1)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_on_a_gpu_allocator_peaks_are_per_step(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    with closing(Recorder(header(), path_in(tmp_path), device, Clocks(), ByteLedger(()))) as rec:
        for step, megabytes in enumerate((64, 1)):
            rec.begin_step(step)
            with rec.span("1F0"):
                torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
            rec.end_step(tokens=1)
    large, small = (step.memory for step in read_rank(path_in(tmp_path)).steps)
    assert large.allocated_peak is not None
    assert small.allocated_peak is not None
    assert large.allocated_peak - small.allocated_peak == 63 << 20
    assert large.reserved_peak is not None
    assert large.reserved_peak >= large.allocated_peak
