"""Records as a Chrome trace (JSON), which opens in Perfetto (ui.perfetto.dev) and chrome://tracing.

    process  rank 3 (dp 0, pp 1, tp 1)
      thread compute         0F0 0F1  0B0 ...        slices (ph X), times in microseconds after the first step's start
      thread waits               [all_reduce]        waits of collectives and barriers
      thread send/receive    [1RECV_F0]              waits for another stage, or for a sharded embedding's sum
      thread phases          DATA  REDUCE_GRAD  OPTIMIZER
      thread steps           step 12 (measure)
      counters               memory by part (ph C)
    arrows (ph s, f): a stage's F to the next stage's F of the same microbatch, and B back

Slices on one thread must nest or lie apart (the format's rule); should a clock's rounding make two overlap, the later
one goes to a second thread of the same name. Format: Google, "Trace Event Format" (2016).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.mesh import Place
from hybrid_runtime.plan import Plan
from hybrid_runtime.records import TRACE, Memory, RankRecords, StepRecord
from hybrid_runtime.schedule.actions import Action, Kind, parse_action

TRACKS = ("steps", "compute", "phases", "waits", "send/receive")
LAST_STEPS = 5
_Event = dict[str, Any]


class Slice(NamedTuple):
    """One box of the picture; times in nanoseconds on the clock that all hosts share."""

    track: str
    start_ns: int
    end_ns: int
    name: str
    args: dict[str, int | str]


def write_trace(ranks: Sequence[RankRecords], plan: Plan, path: Path, steps: Collection[int] | None = None) -> None:
    """Writes the trace of one side.

    Args:
        ranks: all ranks of the side, as `read_side` returns them.
        steps: which steps to draw; default: the first and the last LAST_STEPS, so that the file stays small.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    drawn = set(default_steps(ranks) if steps is None else steps)
    head = {
        "displayTimeUnit": "ms",
        "otherData": {"name": plan.name, "mesh": str(plan.mesh), "schedule": plan.schedule, "steps": sorted(drawn)},
    }
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(json.dumps(head)[:-1] + ', "traceEvents": [')
            for number, event in enumerate(_events(ranks, drawn)):
                file.write((",\n" if number else "\n") + json.dumps(event, separators=(",", ":")))
            file.write("\n]}\n")
    except OSError as problem:
        raise EnvironmentProblem(f"{path}: cannot be written ({problem.strerror}); free some space") from None


def default_steps(ranks: Sequence[RankRecords]) -> list[int]:
    """The first step and the last LAST_STEPS of those that all ranks have and that hold spans of the model."""
    length = min((len(rank.steps) for rank in ranks), default=0)
    common = [step.step for step in ranks[0].steps[:length] if step.purpose == TRACE] if length else []
    return sorted({*common[:1], *common[-LAST_STEPS:]})


def _events(ranks: Sequence[RankRecords], drawn: Collection[int]) -> Iterator[_Event]:
    chosen = [(rank, [step for step in rank.steps if step.step in drawn]) for rank in ranks]
    base_ns = min((step.start_ns + rank.header.clock_offset_ns for rank, some in chosen for step in some), default=0)
    arrows = Arrows(base_ns)
    for rank, some in chosen:
        yield from _process_names(rank)
        slices = [slice_ for step in some for slice_ in _slices(rank, step)]
        used: set[int] = set()
        for slice_, tid in lanes(slices):
            yield {"ph": "X", "pid": rank.header.rank, "tid": tid, "cat": slice_.track, "name": slice_.name,
                   "ts": _us(slice_.start_ns - base_ns), "dur": _us(slice_.end_ns - slice_.start_ns),
                   "args": slice_.args}  # fmt: skip
            arrows.add(rank, slice_, tid)
            used.add(tid)
        yield from _thread_names(rank, used)
        for step in some:
            yield from _counters(rank, step, base_ns)
    yield from arrows.events()


def _us(time_ns: int) -> float:
    """Microseconds with three decimals: exact, and small enough after the base is taken off to stay so in a double."""
    return time_ns / 1000


def _slices(rank: RankRecords, step: StepRecord) -> Iterator[Slice]:
    offset = rank.header.clock_offset_ns

    def box(track: str, start_ns: int, end_ns: int, name: str, **args: int | str) -> Slice:
        return Slice(track, start_ns + offset, max(start_ns, end_ns) + offset, name, {"step": step.step, **args})

    yield box("steps", step.start_ns, step.end_ns, f"step {step.step} ({step.phase})", block=step.block)
    for span in step.spans:
        times = {"wait_us": span.wait_ns // 1000} | ({"cpu_us": span.cpu_ns // 1000} if span.cpu_ns >= 0 else {})
        yield box("compute" if _action(span.name) else "phases", span.start_ns, span.end_ns, span.name, **times)
    for wait in step.waits:
        track = "send/receive" if _action(wait.name) else "waits"
        yield box(track, wait.start_ns, wait.end_ns, wait.name)


def _action(name: str) -> Action | None:
    try:
        return parse_action(name)
    except ValueError:  # the name of a phase
        return None


def lanes(slices: Iterable[Slice]) -> Iterator[tuple[Slice, int]]:
    """Each slice with the thread id that it is drawn on: slices of one id nest or lie apart."""
    open_ends: dict[int, list[int]] = {}  # thread id -> ends of the slices that are open there, the innermost last
    for slice_ in sorted(slices, key=lambda one: (one.start_ns, -one.end_ns)):
        for tid in itertools.count(TRACKS.index(slice_.track), len(TRACKS)):
            ends = open_ends.setdefault(tid, [])
            while ends and ends[-1] <= slice_.start_ns:
                ends.pop()
            if not ends or slice_.end_ns <= ends[-1]:
                ends.append(slice_.end_ns)
                yield slice_, tid
                break


class Arrows:
    """Flow events between the compute slices of neighbouring stages.

    An action of several slices (an I with an older W inside) is entered at its first and left at its last. An arrow
    leaves just before the end of its first slice; where clocks of two hosts disagree so far that the second slice
    begins earlier than that, it leaves where the second begins, for an arrow must not run back in time.
    """

    def __init__(self, base_ns: int) -> None:
        self._base_ns = base_ns
        self._first: dict[tuple[int, int, int, bool, int, int], tuple[int, int, Slice]] = {}
        self._last: dict[tuple[int, int, int, bool, int, int], tuple[int, int, Slice]] = {}

    def add(self, rank: RankRecords, slice_: Slice, tid: int) -> None:
        """Remembers a slice; only those of F and of input gradients (I, or B that contains it) are ends of arrows."""
        action = _action(slice_.name) if slice_.track == "compute" else None
        if action is not None and action.kind in (Kind.F, Kind.B, Kind.I):
            header = rank.header
            key = self._key(header.dp, header.tp, int(slice_.args["step"]), action)
            self._last[key] = (header.rank, tid, slice_)
            self._first.setdefault(key, self._last[key])

    @staticmethod
    def _key(dp: int, tp: int, step: int, action: Action) -> tuple[int, int, int, bool, int, int]:
        return dp, tp, step, action.kind is Kind.F, action.stage, action.microbatch

    def events(self) -> Iterator[_Event]:
        """Pairs of flow events, `s` and `f`, with one id each."""
        number = 0
        for (dp, tp, step, forward, stage, microbatch), source in self._last.items():
            target = self._first.get((dp, tp, step, forward, stage + (1 if forward else -1), microbatch))
            if target is None:
                continue
            number += 1
            start_ns = target[2].start_ns
            leave_ns = max(source[2].start_ns, min(source[2].end_ns - 1, start_ns))
            name = f"{'F' if forward else 'B'}{microbatch}"
            yield self._end("s", number, name, source, leave_ns)
            yield self._end("f", number, name, target, start_ns) | {"bp": "e"}

    def _end(self, phase: str, number: int, name: str, box: tuple[int, int, Slice], time_ns: int) -> _Event:
        pid, tid, _ = box
        return {"ph": phase, "id": number, "cat": "stage", "name": name, "pid": pid, "tid": tid,
                "ts": _us(time_ns - self._base_ns)}  # fmt: skip


def _process_names(rank: RankRecords) -> Iterator[_Event]:
    header = rank.header
    place = Place(header.rank, header.dp, header.pp, header.tp)
    labels = f"stages {', '.join(map(str, header.stages))}; {header.device.id}"
    for name, args in (
        ("process_name", {"name": str(place)}),
        ("process_sort_index", {"sort_index": header.rank}),
        ("process_labels", {"labels": labels}),
    ):
        yield {"ph": "M", "pid": header.rank, "name": name, "args": args}


def _thread_names(rank: RankRecords, used: Collection[int]) -> Iterator[_Event]:
    for tid in used:
        lane, track = divmod(tid, len(TRACKS))
        name = TRACKS[track] + (f" {lane + 1}" if lane else "")
        order = {"sort_index": track * 1000 + lane}
        yield {"ph": "M", "pid": rank.header.rank, "tid": tid, "name": "thread_name", "args": {"name": name}}
        yield {"ph": "M", "pid": rank.header.rank, "tid": tid, "name": "thread_sort_index", "args": order}


def _counters(rank: RankRecords, step: StepRecord, base_ns: int) -> Iterator[_Event]:
    known = {part: getattr(step.memory, part) for part in Memory.model_fields}
    known["kv_cache"] = step.memory.kv_cache or None  # only where requests are served
    known = {part: size_bytes for part, size_bytes in known.items() if size_bytes is not None}
    if known:
        yield {"ph": "C", "pid": rank.header.rank, "name": "memory (bytes)",
               "ts": _us(step.start_ns + rank.header.clock_offset_ns - base_ns), "args": known}  # fmt: skip
