"""Raw records of a side -> integers per step and per physical device. Definitions only; nothing is judged here.

One step on one rank, and what each metric calls its parts (~ is a wait for other ranks):

    start                                                          end
    | recv~~ |---- 0F0 ---~~~~--|  recv~~~~ |--- 0B0 ---|-REDUCE-|-OPTIMIZER-|
      bubble      compute  exposed   bubble    compute   exposed    compute

compute = what the device itself worked; exposed wait = waiting for peers inside spans, and gradient reduction; bubble =
the rest of the window of the step, which lasts from the first rank's start to the last rank's end on all devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from statistics import median
from typing import Literal

from hybrid_runtime.exact import decimal_text
from hybrid_runtime.predicted_serving import LatencyKind
from hybrid_runtime.records import DATA, PLANTED, SPEED, TRACE, RankRecords, Span, StepRecord
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.serving.request_records import RequestRecord
from hybrid_runtime.verdict import DeviceRow
from hybrid_runtime.verifier.served_rounds import grouped
from hybrid_runtime.verifier.side import Side, is_compute, is_of_kind
from hybrid_runtime.verifier.statistics import share_interval

Clock = Literal["wall", "thread_cpu"]
Hardware = Literal["cuda", "cpu", "cpu-oversubscribed"]
SERVING_PARTS = ("parameters", "kv_cache", "buffers_peak")
MEMORY_PARTS = ("parameters", "gradients", "optimizer", "activations_peak", "buffers_peak")


def union_ns(intervals: Iterable[tuple[int, int]]) -> int:
    """Total length of the union of intervals."""
    total, reached = 0, -1
    for start, end in sorted(intervals):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def wall_compute_ns(spans: Sequence[Span]) -> int:
    """Time inside compute spans minus the waits inside them."""
    return max(0, _covered_ns(spans) - sum(span.wait_ns for span in spans))


def thread_cpu_ns(spans: Sequence[Span]) -> int | None:
    """CPU time of the rank's thread inside compute spans; None where it was not taken."""
    times = [span.cpu_ns for span in spans]
    return None if -1 in times else sum(times)


def _covered_ns(spans: Iterable[Span]) -> int:
    return union_ns((span.start_ns, span.end_ns) for span in spans)


def exposed_wait_ns(step: StepRecord) -> int:
    """Waits inside compute spans, plus the phases that only communicate."""
    inside = sum(span.wait_ns for span in step.spans if is_compute(span.name))
    return inside + sum(
        span.end_ns - span.start_ns for span in step.spans if not is_compute(span.name) and span.name != DATA
    )


def host_ns(step: StepRecord) -> int:
    """Time of the rank's own host: reading data, and between spans without waiting."""
    reading = sum(span.end_ns - span.start_ns for span in step.spans if span.name == DATA)
    waiting = sum(wait.end_ns - wait.start_ns for wait in step.waits) - sum(span.wait_ns for span in step.spans)
    between = step.end_ns - step.start_ns - _covered_ns(step.spans)
    return reading + max(0, between - max(0, waiting))


def owns_device(rank: RankRecords, others: Sequence[RankRecords]) -> bool:
    """Whether a rank really has its device for itself: its own word, checked against the affinities read back."""
    header = rank.header
    if not header.device.owned:
        return False
    if any(other.header.device.id == header.device.id for other in others if other is not rank):
        return False
    if header.device.kind == "cuda":
        return True
    cores = set(header.host.affinity)
    neighbours = [
        other.header.host for other in others if other is not rank and other.header.host.name == header.host.name
    ]
    return len(cores) >= header.host.threads_per_rank and not any(cores & set(host.affinity) for host in neighbours)


@dataclass(frozen=True)
class Metrics:
    """Everything that claims are made of, for the measured steps of one side.

    Attributes:
        devices: ids of the physical devices, ordered by their lowest rank; columns of all tables below.
        ranks_of: per device, the indexes of its ranks.
        purpose: which measured steps these are (`records.TRACE`, SPEED, ...).
        action_kind: the kind of action that compute is counted of; None for all compute.
    """

    side: Side
    devices: tuple[str, ...]
    ranks_of: tuple[tuple[int, ...], ...]
    owned: tuple[bool, ...]
    purpose: str = TRACE
    action_kind: Kind | None = None

    def only(self, kind: Kind) -> Metrics:
        """The same steps, but no other compute than that of one kind of action."""
        return replace(self, action_kind=kind)

    def of(self, purpose: str) -> Metrics:
        """The same side's measured steps of another purpose."""
        return replace(self, purpose=purpose)

    @property
    def bare(self) -> Metrics:
        """The steps that speed is judged by: bare ones, or those of a plain run, which records spans throughout."""
        bare = self.of(SPEED)
        return bare if bare.steps else self

    @cached_property
    def steps(self) -> tuple[StepRecord, ...]:
        """Rank 0's measured steps of the purpose: which steps are judged, in which blocks."""
        return tuple(self.measured(self.side.ranks[0]))

    def measured(self, rank: RankRecords) -> Iterator[StepRecord]:
        """A rank's measured steps of the purpose."""
        return rank.measured(self.purpose)

    @property
    def oversubscribed(self) -> bool:
        return not all(self.owned)

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        return self.side.ranks[0].header.device.kind

    @property
    def hardware(self) -> Hardware:
        if self.kind == "cuda":
            return "cuda"
        return "cpu-oversubscribed" if self.oversubscribed else "cpu"

    @property
    def clock(self) -> Clock:
        """Wall time where every rank has its device for itself, the thread's CPU time where CPU cores are shared."""
        return "thread_cpu" if self.hardware == "cpu-oversubscribed" else "wall"

    @cached_property
    def windows_ns(self) -> list[int]:
        """Per measured step: from the first rank's start to the last rank's end, on one clock."""
        return [
            max(step.end_ns + rank.header.clock_offset_ns for rank, step in row)
            - min(step.start_ns + rank.header.clock_offset_ns for rank, step in row)
            for row in self.rows()
        ]

    @cached_property
    def compute_ns(self) -> list[list[int]] | None:
        """Per measured step and device: compute on `clock`, summed over the device's ranks. None: not recorded."""
        return self.compute_on(self.clock)

    def compute_on(self, clock: Clock) -> list[list[int]] | None:
        """`compute_ns` on a clock of choice."""
        table: list[list[int]] = []
        for row in self.rows():
            times = [self.compute_of(step, clock) for _, step in row]
            known = [time for time in times if time is not None]
            if len(known) < len(times):
                return None
            table.append(self._per_device(known))
        return table

    def compute_of(self, step: StepRecord, clock: Clock) -> int | None:
        """Compute of one step on one rank; None where the clock was not read."""
        kind = self.action_kind
        spans = [span for span in step.spans if is_compute(span.name) and (kind is None or is_of_kind(span.name, kind))]
        return wall_compute_ns(spans) if clock == "wall" else thread_cpu_ns(spans)

    @cached_property
    def work_flops(self) -> list[int]:
        """FLOPs of one step per device, counted on the real modules."""
        return self._per_device([rank.header.flops_per_step for rank in self.side.ranks])

    @cached_property
    def memory_bytes(self) -> list[list[int]]:
        """Peak bytes per repeat and device: the allocator's on CUDA (measured steps), the byte ledger's elsewhere."""
        return [self._per_device(row) for row in self._peaks()]

    @property
    def memory_peaks(self) -> list[int]:
        """Largest of the repeats per device; empty if memory was not recorded."""
        return [max(column) for column in zip(*self.memory_bytes, strict=True)]

    @property
    def memory_method(self) -> str:
        return "allocator peak" if self.kind == "cuda" else "byte ledger"

    def _peaks(self) -> list[list[int]]:
        rows = []
        for row in zip(*(rank.steps for rank in self.side.ranks), strict=True):
            if self.kind == "cuda":
                peaks = [
                    step.memory.allocated_peak
                    for step in row
                    if step.phase == "measure" and step.purpose == self.purpose
                ]
            else:
                peaks = [step.memory.ledger_peak for step in row if step.ledger]
            known = [peak for peak in peaks if peak is not None]
            if len(known) == len(row):
                rows.append(known)
        return rows

    def memory_parts(self, device: int) -> dict[str, int]:
        """Largest bytes of each part on a device; the peaks of the parts need not fall together."""
        ranks = [self.side.ranks[index] for index in self.ranks_of[device]]
        return {
            part: sum(max((getattr(step.memory, part) or 0 for step in rank.steps), default=0) for rank in ranks)
            for part in (SERVING_PARTS if self.side.deployment.serves else MEMORY_PARTS)
        }

    def wait_ns(self, device: int) -> int:
        """All waits of a device's ranks in the measured steps."""
        ranks = [self.side.ranks[index] for index in self.ranks_of[device]]
        return sum(wait.end_ns - wait.start_ns for rank in ranks for step in self.measured(rank) for wait in step.waits)

    def shares_of_window(self, device: int) -> tuple[Fraction, Fraction]:
        """(exposed wait, bubble) of a device as shares of the measured windows, a mean over its ranks, wall clock."""
        ranks = [self.side.ranks[index] for index in self.ranks_of[device]]
        whole = sum(self.windows_ns) * len(ranks)
        exposed = sum(exposed_wait_ns(step) for rank in ranks for step in self.measured(rank))
        inside = sum(_covered_ns(step.spans) for rank in ranks for step in self.measured(rank))
        return Fraction(exposed, whole), 1 - Fraction(inside, whole)

    def blocks(self) -> list[list[int]]:
        """Indexes of the measured steps of each block, in order."""
        found: dict[int, list[int]] = {}
        for index, step in enumerate(self.steps):
            found.setdefault(step.block, []).append(index)
        return list(found.values())

    @cached_property
    def requests(self) -> list[list[RequestRecord]]:
        """Per measured step, its requests; empty lists where none are served."""
        by_step = grouped(self.side.requests)
        return [by_step.get(step.step, []) for step in self.steps]

    def latencies_ns(self, kind: LatencyKind) -> list[list[Fraction]]:
        """Per measured step, this latency of every request that has it."""
        return [
            [latency for request in step if (latency := request.latency_ns(kind)) is not None] for step in self.requests
        ]

    def losses(self) -> list[str | None]:
        """The loss of every step of the model, warm-up included, from the first rank that knows it."""
        return self._known_by_any("loss")

    def gradient_norms(self) -> list[str | None]:
        """The global gradient norm of every step of the model, warm-up included."""
        return self._known_by_any("grad_norm")

    def _known_by_any(self, name: str) -> list[str | None]:
        rows = zip(*(rank.steps for rank in self.side.ranks), strict=True)
        return [
            next((text for step in row if (text := getattr(step, name)) is not None), None)
            for row in rows
            if row[0].purpose != PLANTED
        ]

    def time_parts(self, device: int) -> dict[str, int]:
        """Where the windows of a device's ranks went, ns of wall clock; the parts add up to the windows.

        compute                  work of the device
        exposed_communication    waits inside spans, and phases that only communicate
        host                     reading data, and gaps between spans in which nobody was waited for
        bubble                   the rest: waiting for messages, and for other ranks at either end
        """
        ranks = [self.side.ranks[index] for index in self.ranks_of[device]]
        steps = [step for rank in ranks for step in self.measured(rank)]
        parts = {
            "compute": sum(self.compute_of(step, "wall") or 0 for step in steps),
            "exposed_communication": sum(map(exposed_wait_ns, steps)),
            "host": sum(map(host_ns, steps)),
        }
        whole = sum(self.windows_ns) * len(ranks)
        return parts | {"bubble": max(0, whole - sum(parts.values()))}

    @property
    def median_step_ns(self) -> Fraction:
        return median(map(Fraction, self.windows_ns))

    @property
    def tokens_per_s(self) -> Fraction:
        return Fraction(sum(step.tokens for step in self.steps) * 10**9, sum(self.windows_ns))

    def rows(self) -> Iterable[list[tuple[RankRecords, StepRecord]]]:
        """Per measured step, every rank with its record of that step."""
        columns = [[(rank, step) for step in self.measured(rank)] for rank in self.side.ranks]
        return map(list, zip(*columns, strict=True))

    def _per_device(self, of_ranks: Sequence[int]) -> list[int]:
        return [sum(of_ranks[rank] for rank in ranks) for ranks in self.ranks_of]


def measure(side: Side) -> Metrics:
    """Groups a side's ranks by physical device."""
    groups: dict[str, list[int]] = {}
    for rank in side.ranks:
        groups.setdefault(rank.header.device.id, []).append(rank.header.rank)
    owned = tuple(owns_device(rank, side.ranks) for rank in side.ranks)
    return Metrics(side, tuple(groups), tuple(map(tuple, groups.values())), owned)


def block_medians(metrics: Metrics) -> list[Fraction]:
    """What latency is judged by, ns: of every block the median step window; where requests are served, the median of
    the latency that [load] names. Nothing where a block has no request with that latency."""
    load = metrics.side.deployment.load
    if load is None:
        samples = [[Fraction(window)] for window in metrics.windows_ns]
    else:
        samples = metrics.latencies_ns(load.latency)
    blocks = [[sample for index in block for sample in samples[index]] for block in metrics.blocks()]
    return [median(block) for block in blocks] if all(blocks) else []


def percent(part: int | Fraction, whole: int, places: int = 2) -> str:
    """part / whole in percent, for people; "n/a" of nothing."""
    return decimal_text(Fraction(part) / whole * 100, places) if whole else "n/a"


def four_forms(amounts: Sequence[int]) -> str:
    """The four ways to state an imbalance, so that none can hide behind another."""
    total, largest, smallest = sum(amounts), max(amounts), min(amounts)
    mean = Fraction(total, len(amounts))
    ratio = decimal_text((Fraction(largest, smallest) - 1) * 100, 2) + " %" if smallest else "infinite"
    return (
        f"range {percent(largest - smallest, total)} pp, "
        f"rel_spread {decimal_text((largest - smallest) / mean * 100, 2)} %, "
        f"lambda {decimal_text((largest / mean - 1) * 100, 2)} %, max/min - 1 = {ratio}"
    )


def device_rows(metrics: Metrics, nvml: Sequence[dict[str, str]]) -> tuple[DeviceRow, ...]:
    """One row per physical device; `nvml` holds what the driver said about each, or why it said nothing."""
    table = metrics.compute_ns or []
    compute = [sum(column) for column in zip(*table, strict=True)] or [0] * len(metrics.devices)
    peaks = metrics.memory_peaks
    window = sum(metrics.windows_ns)
    return tuple(
        DeviceRow(
            device=device,
            ranks=metrics.ranks_of[index],
            stages=_stages(metrics, index),
            compute_ns=compute[index],
            window_ns=window,
            wait_ns=metrics.wait_ns(index),
            time_parts=metrics.time_parts(index) if metrics.steps else {},
            time_share=percent(compute[index], sum(compute)),
            time_share_bounds=_share_bounds(metrics, index),
            work_share=percent(metrics.work_flops[index], sum(metrics.work_flops)),
            busy=percent(compute[index], window),
            memory_bytes=peaks[index] if peaks else None,
            memory_share=percent(peaks[index], sum(peaks)) if peaks else None,
            memory_parts=metrics.memory_parts(index),
            nvml=nvml[index],
        )
        for index, device in enumerate(metrics.devices)
    )


def _share_bounds(metrics: Metrics, device: int) -> tuple[str, str] | None:
    """The interval of a device's share of compute, in percent."""
    table = metrics.compute_ns
    if not table or len(metrics.devices) < 2 or not all(map(sum, table)):
        return None
    batch_steps = metrics.side.deployment.measurement.batch_steps
    interval = share_interval(table, device, batch_steps)
    if interval is None:
        return None
    _, lower, upper = interval
    return percent(lower, 1, 4), percent(upper, 1, 4)


def _stages(metrics: Metrics, device: int) -> tuple[int, ...]:
    ranks = [metrics.side.ranks[index] for index in metrics.ranks_of[device]]
    return tuple(sorted({stage for rank in ranks for stage in rank.header.stages}))
