"""Every distinct unit alone: F, B, I and W of a microbatch, and what they keep, for several degrees, widths, sizes.

    a round   F F F ... B B B | F F F ... I I I W W W      over all units of a degree and size, then the next ones

A unit follows others as in a stage, so it finds the caches full of their work and not of its own; and a drift of the
machine spreads over all of them.

Units run in a `Stage` with a weight queue and flat gradients, exactly as a rank runs them; collectives are stubs.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, count, groupby
from time import monotonic_ns
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid_runtime.calibration import Spread, UnitTimes
from hybrid_runtime.comm.axis import Axis, Clocks
from hybrid_runtime.comm.point_to_point import TensorSpec
from hybrid_runtime.data_parallel.buckets import GradientBuckets
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import PlanError
from hybrid_runtime.lone.carries import Spec, inputs_of
from hybrid_runtime.lone.group import LoneGroup, Traffic
from hybrid_runtime.lone.maker import Echo
from hybrid_runtime.lone.recorder import LoneRecorder
from hybrid_runtime.models.build import build_units, model_units
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch, UnitSpec, specs_of
from hybrid_runtime.pieces import Piece, read_piece, unit_of
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.planner.asked import asked_of, forgetting_asked_of
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.tensor_parallel.gradients import set_accumulate_in_place
from hybrid_runtime.tensor_parallel.initialise import any_weights
from hybrid_runtime.tensor_parallel.recompute import Recompute
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue

ROUNDS, MOST_ROUNDS, ROUNDS_S = 8, 40, 25.0
UNITS_S = 120.0  # what a plan asks for last is left out rather than to take longer
_OWN_VOCABULARY = 256  # of a user's own units, whose vocabulary nobody knows
PASSES = 5  # F B F I W
WIDTHS = (1, 2, 3)  # quarters of a unit that can be cut

Tick = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be measured.

    Attributes:
        specs: of all units of the model, in order.
        asked: pairs of tensor-parallel degree and microbatch size, the most important first.
        compiled: units are compiled, which happens in the passes that warm up.
        forgetting: what units may forget; measured of whole units at the first pair's microbatch size.
        master_weights: gradients of bfloat16 parameters are float32.
        vocab_size: bounds random tokens.
    """

    specs: Sequence[UnitSpec]
    asked: Sequence[tuple[int, int]]
    forgetting: Sequence[RecomputeKind]
    sequence_length: int
    sequence_parallel: bool
    dtype: str
    compiled: bool
    master_weights: bool
    vocab_size: int
    device: torch.device


class _Unit(NamedTuple):
    """One unit or piece on one rank; all microbatch sizes share it."""

    name: str
    tp_degree: int
    parts: int
    parameters: int
    stage: Stage
    ledger: ByteLedger
    recorder: Callable[[], LoneRecorder]
    recompute: RecomputeKind


@dataclass(slots=True)
class _Case:
    """A unit with one microbatch size."""

    of: _Unit
    microbatch_size: int
    recorder: LoneRecorder
    inputs: Carry
    microbatch: Microbatch
    gradients: list[Tensor] = field(default_factory=list)
    host_ns: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    output_bytes: int = 0


def unit_times(wanted: Wanted, tick: Tick) -> tuple[list[UnitTimes], dict[str, str]]:
    """Measures all cases.

    Returns:
        One row per case, those of units that forget among them, and why degrees were left out, by name.
    """
    left_out: dict[str, str] = {}
    with any_weights():
        cases, weighed = _admitted(wanted, left_out, tick)
    begin_ns = monotonic_ns()
    _round(cases)  # the first one warms up
    for case in cases:
        case.recorder.steps.clear()
        case.host_ns.clear()
    rounds = max(ROUNDS, min(MOST_ROUNDS, int(ROUNDS_S * 1e9 / max(1, monotonic_ns() - begin_ns))))
    for number in range(rounds):
        tick(f"units: round {number + 1} of {rounds}")
        _round(cases if number % 2 == 0 else list(reversed(cases)))
    return [_row(case, wanted, held) for case, held in zip(cases, weighed)], left_out


@contextmanager
def busy_units(deployment: Deployment) -> Iterator[Callable[[], object]]:
    """Whole units of a deployment's model at work on the CPU: every call is the next of a round's PASSES passes."""
    wanted, left_out = wanted_of(deployment, torch.device("cpu")), dict[str, str]()
    with any_weights():
        family = next(filter(None, (_family(wanted, tp_degree, left_out) for tp_degree, _ in wanted.asked)))
        cases = [
            case
            for case in _cases_of(wanted, family, wanted.asked[0][1])
            if case.of.recompute == "none" and not read_piece(case.of.name)
        ]
    passes = chain.from_iterable(_chain(cases) for _ in count())
    yield lambda: next(passes)


def wanted_of(deployment: Deployment, device: torch.device) -> Wanted:
    """What a plan of the deployment will ask for."""
    assert deployment.model is not None
    assert deployment.batch is not None
    return Wanted(
        specs=model_units(deployment.model, deployment.shape),
        asked=asked_of(deployment),
        forgetting=forgetting_asked_of(deployment),
        sequence_length=deployment.batch.sequence_length,
        sequence_parallel=deployment.parallel.sequence_parallel,
        dtype=deployment.model.dtype,
        compiled=deployment.model.compile,
        master_weights=deployment.optimizer.master_weights,
        vocab_size=deployment.shape.vocab_size if deployment.shape else _OWN_VOCABULARY,
        device=device,
    )


def _round(cases: Sequence[_Case]) -> None:
    for _, alike in groupby(cases, key=lambda case: (case.of.tp_degree, case.microbatch_size)):
        deque(_chain(tuple(alike)), maxlen=0)


def _chain(cases: Sequence[_Case]) -> Iterator[None]:
    """Stops after each of its passes; the last one belongs to the end."""
    for case in cases:
        case.recorder.begin_step(0)
    for index, kinds in enumerate(("FB", "FIW")):
        for kind in kinds:
            for case in reversed(cases) if kind in "BI" else cases:
                case.recorder.take_over()
                with case.recorder.span(f"0{kind}{index}"):
                    start_ns = monotonic_ns()
                    _act(case, kind, index)
                    case.host_ns[kind].append(monotonic_ns() - start_ns)
            if (index, kind) == (1, "W"):
                for case in cases:
                    case.recorder.close_window()
            yield


def _act(case: _Case, kind: str, index: int) -> None:
    if kind == "F":
        output = case.of.stage.forward(index, case.inputs, case.microbatch)
        if not case.gradients:
            case.gradients = [torch.ones_like(y) if y.dim() == 0 else torch.randn_like(y) for y in output]
            case.output_bytes = sum(y.nbytes for y in output)
    elif kind == "W":
        case.of.stage.weight_gradient(index)
    else:
        (case.of.stage.backward if kind == "B" else case.of.stage.input_gradient)(index, case.gradients)


class _Held(dict[str, int]):
    """Bytes by name: saved, until_w, temporary."""


def _weighed(case: _Case) -> _Held:
    """One microbatch under the byte ledger: what F keeps, what of it is left after I, what I holds beyond that."""
    found, temporary = _Held(), 0
    for index, kinds in enumerate(("FB", "FIW")):
        for kind in kinds:
            before = case.of.ledger.in_use.activations
            with case.of.ledger.watching():
                _act(case, kind, index)
            after = case.of.ledger.in_use.activations
            if kind == "I":
                temporary = max(temporary, case.of.ledger.peaks.activations - max(before, after))
            if kind == "F":
                found["saved"] = after - before
            elif kind == "I":
                found["until_w"] = after
    found["temporary"] = temporary
    return found


def _row(case: _Case, wanted: Wanted, held: _Held) -> UnitTimes:
    times: dict[str, list[int]] = defaultdict(list)
    for step in case.recorder.steps:
        for key, samples in step.actions_ns.items():
            times[key[-1]] += samples
    device = {kind: spread(samples) for kind, samples in times.items()}
    on_cpu = wanted.device.type == "cpu"
    return UnitTimes(
        unit=kind_of(case.of.name),
        tp_degree=case.of.tp_degree,
        sequence_parallel=wanted.sequence_parallel and case.of.tp_degree > 1,
        microbatch_size=case.microbatch_size,
        sequence_length=wanted.sequence_length,
        dtype=wanted.dtype,
        compiled=wanted.compiled,
        parts=case.of.parts,
        clock="thread_cpu" if on_cpu else "cuda_event",
        forward=device["F"],
        backward=device["B"],
        input_grad=device["I"],
        weight_grad=device["W"],
        host={
            "F": device["F"] if on_cpu else spread(case.host_ns["F"]),
            "B": device["B"] if on_cpu else spread(case.host_ns["B"]),
            "I": device["I"] if on_cpu else spread(case.host_ns["I"]),
            "W": device["W"] if on_cpu else spread(case.host_ns["W"]),
        },
        saved_bytes=held["saved"],
        until_w_bytes=held["until_w"],
        temporary_bytes=held["temporary"],
        output_bytes=case.output_bytes,
        parameters=case.of.parameters,
        recompute=case.of.recompute,
    )


def kind_of(name: str) -> str:
    """What equal units share: "3.mlp[0:96]" is an "mlp"."""
    return unit_of(name).rpartition(".")[2]


class _Family(NamedTuple):
    """The units of one tensor-parallel degree."""

    context: BuildContext
    units: Sequence[_Unit]


def _admitted(wanted: Wanted, left_out: dict[str, str], tick: Tick) -> tuple[list[_Case], list[_Held]]:
    """Cases in the order of their importance, for as long as their rounds fit into the time; and what each holds."""
    families: dict[int, _Family | None] = {}
    cases: list[_Case] = []
    weighed: list[_Held] = []
    round_ns, share_ns = 0, 0.0  # of a round, all cases together; of one sequence on one tensor rank, its first pair's
    for tp_degree, size in wanted.asked:
        name = f"units at tp_degree {tp_degree}, microbatch_size {size}"
        tick(name)
        if (round_ns + share_ns * size / tp_degree) * (1 + ROUNDS) > UNITS_S * 1e9:
            left_out[name] = f"units are measured for {UNITS_S:.0f} s; sizes that a plan needs more took them"
            continue
        if tp_degree not in families:
            families[tp_degree] = _family(wanted, tp_degree, left_out)
        family = families[tp_degree]
        if family is None:
            continue
        try:
            more = _cases_of(wanted, family, size)
            held = [_weighed(case) for case in more]
            begin_ns = monotonic_ns()
            _round(more)
        except (torch.OutOfMemoryError, MemoryError) as problem:
            if not cases:
                raise
            left_out[name] = f"does not fit on {wanted.device} ({problem})"
            continue
        took_ns = monotonic_ns() - begin_ns
        round_ns, share_ns = round_ns + took_ns, share_ns or took_ns * tp_degree / size
        cases += more
        weighed += held
    return cases, weighed


def _family(wanted: Wanted, tp_degree: int, left_out: dict[str, str]) -> _Family | None:
    """None where the model cannot be split like this, which `left_out` is told."""
    traffic, clocks = Traffic(), Clocks()
    axis = _axis(wanted, tp_degree, traffic, clocks)
    context = BuildContext(
        tp=axis,
        sequence_parallel=wanted.sequence_parallel and tp_degree > 1,
        device=wanted.device,
        dtype=getattr(torch, wanted.dtype),
        compiled=wanted.compiled,
    )
    first = {kind_of(spec.name): spec for spec in reversed(wanted.specs)}
    names = [(name, kind) for spec in first.values() for name, kind in _variants(wanted, spec, tp_degree)]
    try:
        return _Family(context, [_unit(wanted, name, kind, context, traffic) for name, kind in names])
    except PlanError as problem:
        left_out[f"units at tp_degree {tp_degree}"] = str(problem)
        return None


def _cases_of(wanted: Wanted, family: _Family, microbatch_size: int) -> list[_Case]:
    inputs = _inputs(wanted, family.context, microbatch_size)
    own = microbatch_size == wanted.asked[0][1]
    units = (unit for unit in family.units if own or unit.recompute == "none")
    return [_case(wanted, unit, inputs[unit_of(unit.name)], microbatch_size) for unit in units]


def _unit(wanted: Wanted, name: str, recompute: RecomputeKind, context: BuildContext, traffic: Traffic) -> _Unit:
    (spec,), piece = specs_of([name], wanted.specs), read_piece(name)
    module = build_units([replace(spec, tied={})], context)[name]
    parameters = list(module.parameters())
    GradientBuckets(parameters, wide=wanted.master_weights)
    set_accumulate_in_place(module, True)
    ledger = ByteLedger(parameters)
    stage = Stage(0, [(name, module)], training=True)
    stage.use_queue(WeightQueue(keep=ledger.keep))
    stage.recompute(Recompute(recompute), [name])
    return _Unit(
        name=name,
        tp_degree=context.tp.size,
        parts=spec.parts if piece is None else piece.parts,
        parameters=sum(parameter.numel() for parameter in parameters),
        stage=stage,
        ledger=ledger,
        recorder=lambda: LoneRecorder(wanted.device, context.tp.clocks, ledger, traffic),
        recompute=recompute,
    )


def _variants(wanted: Wanted, spec: UnitSpec, tp_degree: int) -> list[tuple[str, RecomputeKind]]:
    """The unit and its pieces, which keep everything, and the whole unit as it forgets; a model's ends never do."""
    kept: list[tuple[str, RecomputeKind]] = [(name, "none") for name in _widths(spec, tp_degree)]
    is_end = spec.name in (wanted.specs[0].name, wanted.specs[-1].name)
    return kept if is_end else [*kept, *((spec.name, kind) for kind in wanted.forgetting)]


def _widths(spec: UnitSpec, tp_degree: int) -> list[str]:
    """The whole unit, and its first quarter, half and three quarters where it can be cut there."""
    parts = spec.parts
    stops = {parts * quarter // 4 // tp_degree * tp_degree for quarter in WIDTHS}
    return [spec.name, *(str(Piece(spec.name, 0, stop)) for stop in sorted(stops) if 0 < stop < parts)]


def _inputs(wanted: Wanted, context: BuildContext, microbatch_size: int) -> Mapping[str, Spec]:
    meta = replace(context, device=torch.device("meta"))
    given = inputs_of(wanted.specs, meta, microbatch_size, wanted.sequence_length)
    return {spec.name: inputs for spec, inputs in zip(wanted.specs, given)}


def _axis(wanted: Wanted, tp_degree: int, traffic: Traffic, clocks: Clocks) -> Axis:
    """The first of `tp_degree` ranks: joined by shared memory on a CPU, as real ranks are."""
    if tp_degree == 1:
        return Axis(clocks=clocks)
    dtype = getattr(torch, wanted.dtype)
    shared = Echo(0, tp_degree, dtype, traffic) if wanted.device.type == "cpu" else None
    return Axis(tp_degree, 0, LoneGroup(0, tp_degree, traffic), clocks, shared)


def _case(wanted: Wanted, unit: _Unit, given: Spec, microbatch_size: int) -> _Case:
    shape = (microbatch_size, wanted.sequence_length)
    tokens = torch.randint(wanted.vocab_size, (2, *shape), device=wanted.device)
    return _Case(
        of=unit,
        microbatch_size=microbatch_size,
        recorder=unit.recorder(),
        inputs=tuple(_random(spec, wanted.device) for spec in given),
        microbatch=Microbatch(tokens[0], tokens[1]),
    )


def _random(spec: TensorSpec, device: torch.device) -> Tensor:
    make = torch.randn if spec.dtype.is_floating_point else torch.zeros
    return make(spec.shape, dtype=spec.dtype, device=device)


def spread(samples: Sequence[int]) -> Spread:
    """Median and the middle eight of ten."""
    ordered = sorted(samples)
    tenth = len(ordered) // 10
    middle = ordered[len(ordered) // 2]
    return Spread(p10_ns=ordered[tenth], p50_ns=middle, p90_ns=ordered[-1 - tenth], samples=len(ordered))
