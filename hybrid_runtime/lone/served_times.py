"""Every distinct unit alone with items of requests: chunks of prompts and decodes, through the cache.

    a round   embedding attn mlp head | embedding attn mlp head | ...      every item size, all units of it in turn

A unit follows others as in a stage, and its weights are another layer's each time, as many as a stage has: so it finds
the processor's caches full of their work and not of its own. The head's time has the choice of the most likely token in
it. What the engine adds to an item is measured with the engine itself (served_items.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, pairwise
from statistics import fmean, median
from time import monotonic_ns, thread_time_ns
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybrid_runtime.calibration import ServedUnitTimes
from hybrid_runtime.comm.axis import Axis, Clocks
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.inference.kv_cache import make_caches
from hybrid_runtime.inference.sampling import sample
from hybrid_runtime.lone.group import LoneGroup, Traffic
from hybrid_runtime.lone.maker import Echo
from hybrid_runtime.lone.unit_times import kind_of, spread
from hybrid_runtime.models.build import build_units, model_units
from hybrid_runtime.models.cached_rows import CachedRows
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch, UnitSpec, specs_of
from hybrid_runtime.pieces import Piece, read_piece
from hybrid_runtime.planner.serving_asked import AskedItem, asked_degrees, asked_items
from hybrid_runtime.serving.requests import GREEDY, Row
from hybrid_runtime.tensor_parallel.initialise import any_weights

ROUNDS, MOST_ROUNDS, ROUNDS_S = 5, 40, 20.0
_PACES = 10
_MOST_LAYERS = 4  # whose weights are there at once

Tick = Callable[[str], None]


class _Calls:
    """A clock that adds up what collectives compute, which is waiting to a rank's own clock and no work of units."""

    def __init__(self) -> None:
        self.took_ns = 0

    def begin_wait(self) -> int:
        return thread_time_ns()

    def end_wait(self, name: str, mark: object) -> None:
        assert isinstance(mark, int)
        self.took_ns += thread_time_ns() - mark


@dataclass(slots=True)
class _Unit:
    """A unit, or half of one, on one rank; with the weights of several layers, which take turns."""

    name: str
    tp_degree: int
    parts: int
    layers: list[nn.Module]
    calls: _Calls
    turn: int = 0

    def next_layer(self) -> nn.Module:
        self.turn = (self.turn + 1) % len(self.layers)
        return self.layers[self.turn]


@dataclass(slots=True)
class _Case:
    """A unit with an item."""

    of: _Unit
    item: AskedItem
    carry: Carry
    microbatch: Microbatch
    sampled: Callable[[Tensor], object] | None
    times_ns: list[int] = field(default_factory=list)
    host_ns: list[int] = field(default_factory=list)


class Served(NamedTuple):
    """What was measured.

    Attributes:
        rows: one per unit and item.
        paces: what an item takes at times, in millionths of its median: so many equally likely ones, fastest first.
        left_out: why degrees were, by name.
    """

    rows: tuple[ServedUnitTimes, ...] = ()
    paces: tuple[int, ...] = ()
    left_out: Mapping[str, str] = {}


def served_times(deployment: Deployment, device: torch.device, tick: Tick) -> Served:
    """Measures all units with all items that a plan asks for."""
    left_out: dict[str, str] = {}
    cases: list[_Case] = []
    for tp_degree in asked_degrees(deployment):
        tick(f"served units at tp_degree {tp_degree}")
        try:
            with any_weights():
                cases += _cases(deployment, tp_degree, device)
        except PlanError as problem:
            left_out[f"served units at tp_degree {tp_degree}"] = str(problem)
    begin_ns = monotonic_ns()
    _round(cases, device)  # the first one warms up
    for case in cases:
        case.times_ns.clear()
        case.host_ns.clear()
    rounds = max(ROUNDS, min(MOST_ROUNDS, int(ROUNDS_S * 1e9 / max(1, monotonic_ns() - begin_ns))))
    for number in range(rounds):
        tick(f"served units: round {number + 1} of {rounds}")
        _round(cases if number % 2 == 0 else list(reversed(cases)), device)
    assert deployment.model is not None
    return Served(tuple(_row(case, deployment.model.dtype) for case in cases), _paces(cases), left_out)


def _paces(cases: Sequence[_Case]) -> tuple[int, ...]:
    """A core is not always equally fast: what else its machine does slows all units of an item alike."""
    items: dict[tuple[int, AskedItem], list[_Case]] = {}
    for case in cases:
        items.setdefault((case.of.tp_degree, case.item), []).append(case)
    found = []
    for alike in items.values():
        usual_ns = sum(median(case.times_ns) for case in alike)
        found += [sum(times) / usual_ns for times in zip(*(case.times_ns for case in alike), strict=True)]
    found.sort()
    edges = [len(found) * step // _PACES for step in range(_PACES + 1)]
    return tuple(int(10**6 * fmean(found[start:stop])) for start, stop in pairwise(edges) if stop > start)


@contextmanager
def busy_requests(deployment: Deployment) -> Iterator[Callable[[], object]]:
    """Units of a deployment's model at work on the CPU with items of requests: every call is the next one."""
    device = torch.device("cpu")
    with any_weights():
        cases = _cases(deployment, asked_degrees(deployment)[0], device)
    turns = cycle(cases)
    yield lambda: _act(next(turns), device)


def _round(cases: Sequence[_Case], device: torch.device) -> None:
    for case in cases:
        _act(case, device)


@torch.inference_mode()
def _act(case: _Case, device: torch.device) -> None:
    microbatch = Microbatch(case.microbatch.tokens, cached=_fresh(case.microbatch))
    layer = case.of.next_layer()
    host_ns = monotonic_ns()
    start = _mark(device)
    called_ns = case.of.calls.took_ns
    output: Carry = layer(case.carry, microbatch)
    if case.sampled is not None:
        case.sampled(output[0][0])
    called_ns = case.of.calls.took_ns - called_ns if device.type == "cpu" else 0
    case.times_ns.append(_since(start, device) - called_ns)
    case.host_ns.append(monotonic_ns() - host_ns)


def _mark(device: torch.device) -> Any:
    if device.type == "cpu":
        return thread_time_ns()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _since(start: Any, device: torch.device) -> int:
    if device.type == "cpu":
        return int(thread_time_ns() - start)
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end.record()
    end.synchronize()
    return int(start.elapsed_time(end) * 1e6)


def _fresh(microbatch: Microbatch) -> CachedRows | None:
    """The rows with nothing made of them yet: the first attention of a stage makes what all of them share."""
    rows = microbatch.cached
    return None if rows is None else CachedRows(rows.rows, (), rows.device)


def _cases(deployment: Deployment, tp_degree: int, device: torch.device) -> list[_Case]:
    assert deployment.model is not None
    assert deployment.batch is not None
    traffic, calls = Traffic(), _Calls()
    clocks = Clocks(current=calls)
    dtype: torch.dtype = getattr(torch, deployment.model.dtype)
    shared = Echo(0, tp_degree, dtype, traffic) if device.type == "cpu" and tp_degree > 1 else None
    axis = (
        Axis(clocks=clocks) if tp_degree == 1 else Axis(tp_degree, 0, LoneGroup(0, tp_degree, traffic), clocks, shared)
    )
    context = BuildContext(tp=axis, device=device, dtype=dtype)
    specs = model_units(deployment.model, deployment.shape)
    first = {kind_of(spec.name): spec for spec in reversed(specs)}
    layers = max(
        1, min(_MOST_LAYERS, deployment.shape.num_layers // deployment.mesh.pp_degree if deployment.shape else 1)
    )
    units = [_unit(specs, name, context, calls, layers) for spec in first.values() for name in _halves(spec, tp_degree)]
    items = asked_items(deployment)
    slots = max(item.rows for item in items)
    every = {f"{unit.name} {number}": layer for unit in units for number, layer in enumerate(unit.layers)}
    make_caches(every, slots, deployment.batch.sequence_length)
    smallest = min(items, key=lambda item: (item.kind == "prefill", item.rows, item.start))
    return [
        _case(deployment, unit, item, device, dtype)
        for item in items
        for unit in units
        if item == smallest or read_piece(unit.name) is None
    ]


def _halves(spec: UnitSpec, tp_degree: int) -> list[str]:
    """The unit, and its first half if it can be cut: what does not halve with it shows."""
    half = spec.parts // 2 // tp_degree * tp_degree
    can_be_cut = kind_of(spec.name) in ("attn", "mlp") and 0 < half < spec.parts
    return [spec.name, *([str(Piece(spec.name, 0, half))] if can_be_cut else [])]


def _unit(specs: Sequence[UnitSpec], name: str, context: BuildContext, calls: _Calls, layers: int) -> _Unit:
    (spec,), piece = specs_of([name], specs), read_piece(name)
    count = layers if kind_of(name) in ("attn", "mlp") else 1
    modules = [build_units([replace(spec, tied={})], context)[name].eval() for _ in range(count)]
    return _Unit(name, context.tp.size, spec.parts if piece is None else piece.parts, modules, calls)


def _case(deployment: Deployment, unit: _Unit, item: AskedItem, device: torch.device, dtype: torch.dtype) -> _Case:
    shape = deployment.shape
    assert shape is not None
    tokens = item.rows * item.length
    rows = tuple(Row(slot, item.start, item.length, slot, 1) for slot in range(item.rows))
    carry = (
        ()
        if kind_of(unit.name) == "embedding"
        else (torch.randn(1, tokens, shape.hidden_size, dtype=dtype, device=device),)
    )
    ids = torch.randint(shape.vocab_size, (1, tokens), device=device)
    is_head = kind_of(unit.name) == "head"
    alone, samplings = Axis(clocks=Clocks()), [GREEDY] * item.rows
    return _Case(
        of=unit,
        item=item,
        carry=() if kind_of(unit.name) == "embedding" else carry,
        microbatch=Microbatch(ids, cached=CachedRows(rows, (), device)),
        sampled=(lambda logits: sample(logits, rows, samplings, logits.shape[1], alone)) if is_head else None,
    )


def _row(case: _Case, dtype: str) -> ServedUnitTimes:
    time = spread(case.times_ns)
    on_cpu = case.microbatch.tokens.device.type == "cpu"
    return ServedUnitTimes(
        unit=kind_of(case.of.name),
        tp_degree=case.of.tp_degree,
        dtype=dtype,
        parts=case.of.parts,
        kind=case.item.kind,
        rows=case.item.rows,
        start=case.item.start,
        length=case.item.length,
        time=time,
        host=time if on_cpu else spread(case.host_ns),
    )
