"""What the runtime adds to an item of requests: the real engine with a few layers of the model, on one rank or on two.

    rank 0   | before | span | after |~~~~~~ answer ~~~~~~| before | span |        pipeline
    rank 1                 hop -> | span | next | fetch | span |
                                         back -> rank 0

    before   rank 0 chooses an item and announces it           next    a later rank hands on and hears what follows
    after    rank 0 hands on what its span made                fetch   it waits for a carry that has been sent already
    hop      from the end of a span until the next stage's begins, where that one waits
    back     from the end of the last stage's span until rank 0 knows the tokens, where it waits

One stage has a layer more than the other, by turns: so the other one waits, or does not. The backend's threads share
each rank's core with what it computes, as they will.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from statistics import median
from time import thread_time_ns
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid_runtime.calibration import ServedHop, ServedItemTimes
from hybrid_runtime.comm.axis import Axis, Clocks
from hybrid_runtime.comm.groups import Groups, join_groups
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.inference.engine import Engine
from hybrid_runtime.inference.kv_cache import Slots, make_caches
from hybrid_runtime.inference.sampling import sample
from hybrid_runtime.inference.wire import Wire
from hybrid_runtime.lone.group import Traffic
from hybrid_runtime.lone.maker import lone_groups
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.models.build import build_units, model_units
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch, UnitSpec
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.planner.serving_asked import asked_rows, longest_prompt
from hybrid_runtime.records import Span, Wait
from hybrid_runtime.serving.batcher import Batcher
from hybrid_runtime.serving.load import Listed
from hybrid_runtime.serving.refusals import Limits
from hybrid_runtime.serving.requests import Request, Row, Sampling
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.telemetry.step_clock import HostClock
from hybrid_runtime.tensor_parallel.initialise import any_weights

ROUNDS = 6
_TOKENS = 24  # of every answer
_MOST_PROMPT = 64
_NO_SIGN_S = 3600.0  # nobody waits for a sign of life
_TIMEOUT = timedelta(seconds=120)
_CPU = torch.device("cpu")


class _Round(NamedTuple):
    """What a rank recorded.

    Attributes:
        added_ns: of every span, what its thread computed beside units and sampling.
    """

    spans: tuple[Span, ...]
    waits: tuple[Wait, ...]
    added_ns: tuple[int, ...]


class _Recorder(NullRecorder):
    """Spans and waits of a round, in memory."""

    def __init__(self, clocks: Clocks) -> None:
        super().__init__(_CPU)
        self.clock = HostClock()
        clocks.current = self.clock

    def begin_span(self, name: str) -> None:
        self.clock.begin_span(name)

    def end_span(self) -> None:
        self.clock.end_span()


class _Watched(Stage):
    """A stage that notes how long its units took, of each item."""

    def __init__(self, index: int, units: Sequence[tuple[str, torch.nn.Module]]) -> None:
        super().__init__(index, units, training=False)
        self.took_ns: list[int] = []

    def forward(self, index: int, carry: Carry, microbatch: Microbatch) -> Carry:
        start_ns = thread_time_ns()
        output = super().forward(index, carry, microbatch)
        self.took_ns.append(thread_time_ns() - start_ns)
        return output


@dataclass
class _Sampler:
    """The sampler, and how long it took, of each item."""

    took_ns: list[int] = field(default_factory=list)

    def __call__(
        self, logits: Tensor, rows: Sequence[Row], samplings: Sequence[Sampling], vocab_size: int, axis: Axis
    ) -> list[int]:
        start_ns = thread_time_ns()
        tokens = sample(logits, rows, samplings, vocab_size, axis)
        self.took_ns.append(thread_time_ns() - start_ns)
        return tokens


def served_on_one(deployment: Deployment) -> list[ServedItemTimes]:
    """What a rank that has no others adds to an item, by rows."""
    assert deployment.model is not None
    dtype: torch.dtype = getattr(torch, deployment.model.dtype)
    groups = lone_groups(Mesh(), 0, [], device=_CPU, dtype=dtype, traffic=Traffic())
    found = []
    for rows in asked_rows(deployment):
        rounds = _rounds(deployment, groups, rows, layers=1)
        gaps = [gap for (one,) in rounds for gap, _ in _gaps(one)]
        found.append(ServedItemTimes(ranks="one", rows=rows, stage_ns=_added(rounds), before_ns=_middle(gaps)))
    return found


def served_on_two(deployment: Deployment) -> list[ServedItemTimes]:
    """The same on two stages, and on two tensor-parallel ranks where the model can be split; both ranks call it."""
    groups = join_groups(Mesh(pp_degree=2), [(0, 1)], device=_CPU, backend="gloo", timeout=_TIMEOUT)
    found = [_pipeline(deployment, groups, rows) for rows in asked_rows(deployment)]
    shape = deployment.shape
    assert shape is not None
    if shape.num_heads % 2 == 0 and shape.num_kv_heads % 2 == 0 and shape.ffn_size % 2 == 0:
        groups = join_groups(Mesh(tp_degree=2), [], device=_CPU, backend="gloo", timeout=_TIMEOUT)
        found += [_tensor(deployment, groups, rows) for rows in asked_rows(deployment)]
    return found


def _pipeline(deployment: Deployment, groups: Groups, rows: int) -> ServedItemTimes:
    slow_first = _rounds(deployment, groups, rows, layers=2 - groups.place.pp)
    slow_last = _rounds(deployment, groups, rows, layers=1 + groups.place.pp)
    hops: dict[str, list[int]] = {"P": [], "D": []}
    for first, last in slow_first:
        for mine, theirs, wait in zip(first.spans, last.spans, _waits(last, "RECV"), strict=True):
            if wait.start_ns < mine.end_ns:
                hops[_kind(mine)].append(theirs.start_ns - mine.end_ns)
    ready_ns = _middle(hops["D"])
    element = torch.empty((), dtype=getattr(torch, deployment.model.dtype)).element_size() if deployment.model else 0
    assert deployment.shape is not None
    bytes_of_row = deployment.shape.hidden_size * element
    sizes = {"D": rows * bytes_of_row, "P": rows * _prompt(deployment) * bytes_of_row}
    fetched, nexts, back, before, after = _of_rounds(slow_last, ready_ns)
    return ServedItemTimes(
        ranks="pipeline",
        rows=rows,
        stage_ns=_added([*slow_first, *slow_last]),
        before_ns=_middle(before),
        after_ns=_middle(after),
        next_ns=_middle(nexts),
        fetch_ns=_mean(fetched),
        back_ns=_middle(back),
        hops=tuple(ServedHop(num_bytes=sizes[kind], time_ns=_middle(hops[kind])) for kind in ("D", "P") if hops[kind]),
    )


def _of_rounds(rounds: Sequence[Sequence[_Round]], ready_ns: int) -> tuple[list[int], ...]:
    """Samples of fetch, next, back, before and after, of rounds in which the first stage waits for the last.

    Args:
        ready_ns: after the end of a span, its carry can be had.
    """
    found: tuple[list[int], ...] = ([], [], [], [], [])
    fetched, nexts, back, before, after = found
    for first, last in rounds:
        receives, spans = _waits(last, "RECV"), last.spans
        for index in range(1, len(spans)):
            if receives[index].start_ns > first.spans[index].end_ns + ready_ns:
                fetch_ns = receives[index].end_ns - receives[index].start_ns
                fetched.append(fetch_ns)
                nexts.append(spans[index].start_ns - spans[index - 1].end_ns - fetch_ns)
        starts = iter([span.start_ns for span in first.spans])
        ends = [span.end_ns for span in first.spans]
        for index, wait in enumerate(_waits(first, "answer")):
            if wait.start_ns < spans[index].end_ns:
                back.append(wait.end_ns - spans[index].end_ns)
                following = next((start for start in starts if start >= wait.end_ns), None)
                if following is not None and index + 1 < len(spans):
                    before.append(following - wait.end_ns)
                earlier = max((end for end in ends if end <= wait.start_ns), default=None)
                if earlier is not None:
                    after.append(wait.start_ns - earlier)
    return found


def _tensor(deployment: Deployment, groups: Groups, rows: int) -> ServedItemTimes:
    rounds = _rounds(deployment, groups, rows, layers=2)
    gaps, late = [], []
    for one, other in rounds:
        for (mine, _), (theirs, _) in zip(_gaps(one), _gaps(other), strict=True):
            gaps.append(mine)
            late.append(max(0, theirs - mine))
    return ServedItemTimes(
        ranks="tensor",
        rows=rows,
        stage_ns=_added(rounds),
        before_ns=_middle(gaps),
        late_ns=_middle(late),
        prefill_waits_ppm=_waits_ppm(rounds, "P"),
        decode_waits_ppm=_waits_ppm(rounds, "D"),
    )


def _waits_ppm(rounds: Sequence[Sequence[_Round]], kind: str) -> int:
    """Of items of a kind, waits in millionths of what they compute; not the first one, for the later rank's start."""
    shares = []
    for ranks in rounds:
        for of_rank in ranks:
            for span in of_rank.spans:
                if _kind(span) == kind:
                    inside = [wait for wait in of_rank.waits if span.start_ns <= wait.start_ns < span.end_ns]
                    waited_ns = sum(wait.end_ns - wait.start_ns for wait in inside)
                    first_ns = inside[0].end_ns - inside[0].start_ns if inside else 0
                    shares.append((waited_ns - first_ns) * 10**6 // max(1, span.end_ns - span.start_ns - waited_ns))
    return _mean(shares)


def _rounds(deployment: Deployment, groups: Groups, rows: int, layers: int) -> list[list[_Round]]:
    """Rounds of equal requests, each as all ranks recorded it; the first one warms up."""
    assert deployment.shape is not None
    with any_weights():
        stage = _stage(deployment, groups, rows, layers)
    recorder, sampler = _Recorder(groups.clocks), _Sampler()
    wire = Wire(groups, rows, _microbatches(groups), _NO_SIGN_S)
    slots = Slots(rows * _microbatches(groups), _CPU)
    vocab_size = deployment.shape.vocab_size
    engine = Engine(stage, slots, wire, groups, vocab_size=vocab_size, recorder=recorder, sampler=sampler)
    found = []
    for number in range(1 + ROUNDS):
        stage.took_ns.clear()
        sampler.took_ns.clear()
        if groups.mesh.world_size > 1:
            groups.barrier()
        recorder.clock.begin_step()
        if groups.place.rank == 0:
            _serve(engine, _prompt(deployment), rows, _microbatches(groups), vocab_size)
        else:
            engine.follow()
        measured = recorder.clock.end_step()
        sampled_ns = sampler.took_ns or [0] * len(measured.spans)
        added_ns = tuple(
            span.cpu_ns - units_ns - sample_ns
            for span, units_ns, sample_ns in zip(measured.spans, stage.took_ns, sampled_ns, strict=True)
        )
        mine = _Round(measured.spans, measured.waits, added_ns)
        everyone = groups.gather_objects(mine) if groups.mesh.world_size > 1 else [mine]
        if number:
            found.append([one for one in everyone if isinstance(one, _Round)])
    return found


def _serve(engine: Engine, prompt: int, rows: int, microbatches: int, vocab_size: int) -> None:
    """One round: every slot has a request."""
    batcher = Batcher(microbatches, rows, Limits(prompt + _TOKENS, vocab_size))
    engine.serve(Listed([Request(one, (0,) * prompt, _TOKENS) for one in range(rows * microbatches)]), batcher)


def _stage(deployment: Deployment, groups: Groups, rows: int, layers: int) -> _Watched:
    """The first units of the model, its last one, or both with layers between."""
    assert deployment.model is not None
    specs = model_units(deployment.model, deployment.shape)
    inner: list[UnitSpec] = specs[1:-1][: 2 * layers]
    is_first, is_last = groups.place.pp == 0, groups.place.pp == groups.mesh.pp_degree - 1
    chosen = [*specs[:1][:is_first], *inner, *specs[-1:][:is_last]]
    context = BuildContext(tp=groups.tp, device=_CPU, dtype=getattr(torch, deployment.model.dtype))
    units = build_units([replace(spec, tied={}) for spec in chosen], context)
    for unit in units.values():
        unit.eval()
    make_caches(units, rows * _microbatches(groups), _prompt(deployment) + _TOKENS)
    return _Watched(groups.place.pp, list(units.items()))


def _microbatches(groups: Groups) -> int:
    return groups.mesh.pp_degree


def _prompt(deployment: Deployment) -> int:
    return min(_MOST_PROMPT, longest_prompt(deployment))


def _gaps(of_rank: _Round) -> Iterator[tuple[int, str]]:
    """Between spans, and what kind of span follows."""
    for earlier, later in zip(of_rank.spans, of_rank.spans[1:]):
        yield later.start_ns - earlier.end_ns, _kind(later)


def _waits(of_rank: _Round, name: str) -> list[Wait]:
    return [wait for wait in of_rank.waits if name in wait.name]


def _kind(span: Span) -> str:
    """ "P" of 0P1, "D" of 0D1."""
    return span.name.strip("0123456789")


def _added(rounds: Sequence[Sequence[_Round]]) -> int:
    """What a span of a decode holds beside units: the median of every rank, on average."""
    by_rank: dict[int, list[int]] = defaultdict(list)
    for ranks in rounds:
        for rank, of_rank in enumerate(ranks):
            by_rank[rank] += [ns for span, ns in zip(of_rank.spans, of_rank.added_ns) if _kind(span) == "D"]
    return sum(map(_middle, by_rank.values())) // len(by_rank)


def _middle(samples: Sequence[int]) -> int:
    return max(0, int(median(samples))) if samples else 0


def _mean(samples: Sequence[int]) -> int:
    """Of the middle eight of ten."""
    tenth = len(samples) // 10
    kept = sorted(samples)[tenth : len(samples) - tenth]
    return max(0, sum(kept) // len(kept)) if kept else 0
