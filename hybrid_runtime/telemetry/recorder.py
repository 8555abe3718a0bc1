"""A rank's recorder: measures every step and writes `records/rank<R>.jsonl` between steps, outside the measured window.

    with closing(Recorder(header, folder.records / "rank3.jsonl", device, clocks, ledger)) as recorder:
        barrier(); recorder.begin_step(0, phase="warmup", ledger=True)
        with recorder.span("0F3"): ...
        summary = recorder.close_window()                       # measured up to here
        recorder.end_step(loss=loss, grad_norm=norm, tokens=tokens)
        recorder.finish()

Every line is written whole by one system call, so a killed rank leaves whole lines.
"""

from __future__ import annotations

import resource
from contextlib import ExitStack
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import Literal, NamedTuple, SupportsFloat

import torch

from hybrid_runtime.comm.axis import Clocks, NoClock, NoWatch
from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.records import (
    COMPUTE_PHASES,
    OPTIMIZER,
    PHASES,
    TRACE,
    TRACED,
    Footer,
    Header,
    Memory,
    StepRecord,
    to_line,
)
from hybrid_runtime.telemetry.core_time import CoreMeter, CoreTime
from hybrid_runtime.telemetry.cuda_clock import CudaClock
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.telemetry.status import StatusFile
from hybrid_runtime.telemetry.step_clock import HostClock, Measured, StepClock, WindowClock

Phase = Literal["warmup", "measure"]

_NOT_COMPUTE = frozenset(PHASES) - frozenset(COMPUTE_PHASES)


class StepSummary(NamedTuple):
    """One step in three figures, for the progress bar.

    Attributes:
        busy_ns: compute, waits subtracted; None where it was not measured.
        wait_ns: waits for other ranks; None where they were not measured.
        window_ns: the whole step.
    """

    busy_ns: int | None
    wait_ns: int | None
    window_ns: int


class NullRecorder:
    """Telemetry off: times the step as a whole and still says what the rank is doing.

    Args:
        device: synchronised at the end of a step when it is a GPU, so that the window is the device's too.
        status: where the current step and action are written; None writes nothing.

    Attributes:
        current: the action or phase that began last; what an error message names.
        status: where the current step and action are written; None writes nothing.
        memory_bytes: newest known peak of the rank's memory: of the CUDA allocator in the step before, or of the byte
            ledger; None before it was weighed.
    """

    def __init__(self, device: torch.device, status: StatusFile | None = None) -> None:
        self._device = device
        self.status = status
        self._span = _SpanContext(self)
        self._start_ns = 0
        self._summary: StepSummary | None = None
        self.current = ""
        self.memory_bytes: int | None = None

    def span(self, name: str) -> _SpanContext:
        """Encloses an action or phase; after an exception the span stays open and `current` keeps its name."""
        self._span.name = name
        return self._span

    def note(self, name: str) -> None:
        """Says what is being done without measuring it, for example a send."""
        self.current = name
        if self.status is not None:
            self.status.doing(name)

    def begin_span(self, name: str) -> None:
        self.note(name)

    def end_span(self) -> None:
        return None

    def change_span(self, name: str) -> None:
        """Inside a span: what is done from here on belongs to `name`. An action may so get several spans."""
        self.end_span()
        self.begin_span(name)

    def begin_step(
        self, step: int, *, block: int = 0, phase: Phase = "measure", purpose: str = TRACE, ledger: bool = False
    ) -> None:
        """Opens a step; call it right after the barrier."""
        if self.status is not None:
            self.status.step(step)
        self._start_ns = monotonic_ns()

    def close_window(self) -> StepSummary:
        """The step's work is done: its window ends here. What is said to `end_step` may take longer to find out."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._summary = StepSummary(None, None, monotonic_ns() - self._start_ns)
        return self._summary

    def end_step(
        self,
        *,
        loss: SupportsFloat | None = None,
        grad_norm: SupportsFloat | None = None,
        tokens: int,
        skipped: bool = False,
    ) -> StepSummary:
        """Ends the step, and its window unless that was closed before."""
        summary = self._summary or self.close_window()
        self._summary = None
        return summary

    def finish(self) -> None:
        """The rank has done all its steps."""
        self.note("finished")

    def close(self) -> None:
        """Lets go of files; safe after an error."""
        if self.status is not None:
            self.status.close()


class _SpanContext:
    """The context manager of `span`: one object for all spans, because they do not nest."""

    __slots__ = ("_recorder", "name")

    def __init__(self, recorder: NullRecorder) -> None:
        self._recorder = recorder
        self.name = ""

    def __enter__(self) -> None:
        self._recorder.begin_span(self.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._recorder.end_span()


class Recorder(NullRecorder):
    """Telemetry on: writes the header now and one line per step; registers itself as the clock of `clocks`.

    Args:
        path: usually `RunFolder.records / "rank<R>.jsonl"`; the status file is `../status/rank<R>` beside it.
        device: decides the clock: CUDA events on a GPU, CLOCK_MONOTONIC and thread CPU time elsewhere.
        ledger: weighs parameters, gradients and optimizer state, and watches activations where `begin_step` says so.
        clock: exchanged in tests.

    Raises:
        EnvironmentProblem: a file cannot be written (`end_step` and `finish` raise it too).
    """

    def __init__(
        self,
        header: Header,
        path: Path,
        device: torch.device,
        clocks: Clocks,
        ledger: ByteLedger,
        clock: StepClock | None = None,
    ) -> None:
        status = path.parent.parent / "status" / f"rank{header.rank}"
        status_file = StatusFile(status, header.rank, header.stages, header.clock_offset_ns)
        super().__init__(device, status_file)
        self._path = path
        self._ledger = ledger
        is_cuda = device.type == "cuda"
        self._tracing = clock or (CudaClock(device) if is_cuda else HostClock())
        self._bare = WindowClock(lambda: torch.cuda.synchronize(device)) if is_cuda else WindowClock()
        self._clock: StepClock = self._tracing
        self._clocks = clocks
        self._watch = ExitStack()
        self._steps = 0
        self._weighs = False
        self._memory: Memory | None = None
        self._step: _Step
        self._measured: Measured
        self._switches = -1
        self._meter = CoreMeter(header.host.affinity)
        self._core_time = CoreTime(-1, 0)
        self._file = self._open()
        try:
            self._write(header)
        except EnvironmentProblem:
            self.close()
            raise
        clocks.current, clocks.watch = self._clock, status_file

    def begin_span(self, name: str) -> None:
        if self._weighs and name == OPTIMIZER:
            self._ledger.weigh_gradients()  # the update may clear them
        self.note(name)
        self._clock.begin_span(name)

    def end_span(self) -> None:
        self._clock.end_span()

    def begin_step(
        self, step: int, *, block: int = 0, phase: Phase = "measure", purpose: str = TRACE, ledger: bool = False
    ) -> None:
        """Opens a step; call it right after the barrier.

        Args:
            purpose: decides whether spans and waits are recorded (`records.TRACED`) or the window only.
            ledger: watch activations in this step; costs time, so only in warm-up steps.
        """
        if self.status is not None:
            self.status.step(step)
        self._clock = self._tracing if purpose in TRACED else self._bare
        self._clocks.current = self._clock
        self._weighs = ledger or self._memory is None
        if ledger:
            self._watch.enter_context(self._ledger.watching())
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._summary = None
        self._step = _Step(step, block, phase, purpose, ledger, self._meter.read(), _involuntary_switches())
        self._clock.begin_step()

    def close_window(self) -> StepSummary:
        assert self.status is not None
        if self._device.type == "cuda":
            self.status.wait("synchronize", "device")
        self._measured = self._clock.end_step()
        self.status.go_on()
        switches = _involuntary_switches()
        self._watch.close()
        self._switches = -1 if switches < 0 else switches - self._step.switches
        self._core_time = _difference(self._step.core_time, self._meter.read())
        known = self._clock is self._tracing
        window_ns = self._measured.end_ns - self._measured.start_ns
        self._summary = summary_of(self._measured) if known else StepSummary(None, None, window_ns)
        return self._summary

    def end_step(
        self,
        *,
        loss: SupportsFloat | None = None,
        grad_norm: SupportsFloat | None = None,
        tokens: int,
        skipped: bool = False,
    ) -> StepSummary:
        """Ends the step, and its window unless that was closed before; then writes the step's line."""
        summary = super().end_step(loss=loss, grad_norm=grad_norm, tokens=tokens)
        measured, step = self._measured, self._step
        self._write(
            StepRecord(
                step=step.step,
                block=step.block,
                phase=step.phase,
                purpose=step.purpose,
                ledger=step.watched,
                start_ns=measured.start_ns,
                end_ns=measured.end_ns,
                loss=_decimal_text(loss),
                grad_norm=_decimal_text(grad_norm),
                tokens=tokens,
                skipped=skipped,
                switches=self._switches,
                cores_busy_ns=self._core_time.cores_busy_ns,
                process_ns=self._core_time.process_ns,
                memory=self._weigh(step.watched),
                spans=measured.spans,
                waits=measured.waits,
            )
        )
        self._steps += 1
        return summary

    def finish(self) -> None:
        """Writes the footer."""
        super().finish()
        self._write(Footer(steps=self._steps, finished_utc=datetime.now(UTC).isoformat()))

    def close(self) -> None:
        """Lets go of files, hooks and the clocks; safe after an error, and without `finish` there is no footer."""
        self._watch.close()
        if self._clocks.current is self._clock:  # a later recorder may have taken over
            self._clocks.current = NoClock()
        if self._clocks.watch is self.status:
            self._clocks.watch = NoWatch()
        self._file.close()
        super().close()

    def _weigh(self, watched: bool) -> Memory:
        allocated = reserved = None
        if self._device.type == "cuda":
            allocated = torch.cuda.max_memory_allocated(self._device)
            reserved = torch.cuda.max_memory_reserved(self._device)
        if self._weighs or self._memory is None:  # what is weighed does not change from step to step
            self._memory = self._ledger.memory(watched=watched)
        self.memory_bytes = allocated or _ledger_bytes(self._memory)
        observed = {} if watched else {"activations_peak": None, "buffers_peak": None, "ledger_peak": None}
        return self._memory.model_copy(update={"allocated_peak": allocated, "reserved_peak": reserved, **observed})

    def _open(self) -> FileIO:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return self._path.open("wb", buffering=0)
        except OSError as problem:
            super().close()
            raise self._unwritable(str(problem.strerror)) from None

    def _write(self, record: Header | StepRecord | Footer) -> None:
        line = to_line(record).encode()
        try:
            written = self._file.write(line)
        except OSError as problem:
            raise self._unwritable(str(problem.strerror)) from None
        if written != len(line):
            raise self._unwritable(f"only {written} of {len(line)} bytes were taken")

    def _unwritable(self, why: str) -> EnvironmentProblem:
        return EnvironmentProblem(f"{self._path}: the records cannot be written ({why}); free space on that disk")


class _Step(NamedTuple):
    step: int
    block: int
    phase: Phase
    purpose: str
    watched: bool
    core_time: CoreTime
    switches: int


def _ledger_bytes(memory: Memory) -> int:
    """Without a watched step: what does not depend on activations."""
    return memory.ledger_peak or memory.parameters + memory.gradients + memory.optimizer + memory.kv_cache


def _difference(before: CoreTime, after: CoreTime) -> CoreTime:
    known = before.cores_busy_ns >= 0 and after.cores_busy_ns >= 0
    return CoreTime(after.cores_busy_ns - before.cores_busy_ns if known else -1, after.process_ns - before.process_ns)


def summary_of(measured: Measured) -> StepSummary:
    """Busy, wait and window of a measured step."""
    busy_ns = sum(
        span.end_ns - span.start_ns - span.wait_ns for span in measured.spans if span.name not in _NOT_COMPUTE
    )
    wait_ns = sum(wait.end_ns - wait.start_ns for wait in measured.waits)
    return StepSummary(busy_ns, wait_ns, measured.end_ns - measured.start_ns)


def _involuntary_switches() -> int:
    """Of the calling thread, since it began; -1 where the system does not count them."""
    own_thread = getattr(resource, "RUSAGE_THREAD", None)  # Linux only
    return -1 if own_thread is None else resource.getrusage(own_thread).ru_nivcsw


def _decimal_text(value: SupportsFloat | None) -> str | None:
    return None if value is None else repr(float(value))
