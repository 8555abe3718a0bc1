"""Costs as `calibrate` measured them on this machine: looked up, interpolated inside what was measured, never beyond.

unit time |            o        measured widths and microbatch sizes; straight lines between them
          |        o  .
          |    o .              a piece narrower than the narrowest measured one is taken as proportional to it, and
          |____:___________     what was not measured is modelled from declared rates: both are said in `notes`
               parts
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache, cached_property
from typing import Literal

from hybrid_runtime.calibration import Calibration, Spread, UnitTimes
from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.analytic import Rates, granule_of, kind_of, llama_forgets
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.forgetting import Measured, timed
from hybrid_runtime.planner.state_bytes import ELEMENT_BYTES, StateBytes, state_bytes
from hybrid_runtime.planner.step_model import Collective, Overlap
from hybrid_runtime.planner.tp_calls import LOSS_SUMS, CallTime, calls_of, column_part, with_calls
from hybrid_runtime.planner.work import Forgets, Line, Unit, Work
from hybrid_runtime.predicted import LABELS, Label, TimeInterval
from hybrid_runtime.schedule.step_costs import Hop
from hybrid_runtime.shapes import LlamaShape

_Point = tuple[int, Work]  # (parts or sequences, what they cost)


@dataclass(frozen=True)
class CalibratedCosts:
    """A `StepModel` of what was measured; whether it was measured on this machine is the caller's to check.

    Attributes:
        calibration: of this model.
        rates: declared, for what the calibration did not measure.
        compiled: units are those that were measured compiled.
        granule: parts of an MLP's granule on every tensor-parallel rank; None for the rule of `granule_of`.
    """

    calibration: Calibration
    shape: LlamaShape
    sequence_length: int
    dtype: str
    workload: str
    sequence_parallel: bool
    rates: Rates
    granule: int | None = None
    compiled: bool = False
    _lines: dict[tuple[int, int], Line] = field(default_factory=dict, compare=False, repr=False)
    _said: dict[str, None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def source(self) -> Literal["analytic", "calibration", "records"]:
        return "calibration"

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return self.calibration.fingerprint

    @property
    def labels(self) -> Mapping[str, Label]:
        return LABELS["calibration"]

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._said)

    @property
    def state(self) -> StateBytes:
        if self.workload == "forward":
            return state_bytes(self.dtype, self.workload, master_weights=False)
        found = self.calibration
        return StateBytes(
            ELEMENT_BYTES[self.dtype], found.gradient_bytes_per_parameter, found.optimizer_bytes_per_parameter
        )

    @property
    def action_ns(self) -> int:
        return self.calibration.action_ns

    @property
    def step_ns(self) -> int:
        return self.calibration.step_ns

    def line(self, tp_degree: int, microbatch_size: int) -> Line:
        if (tp_degree, microbatch_size) not in self._lines:
            self._lines[tp_degree, microbatch_size] = self._line(tp_degree, microbatch_size)
        return self._lines[tp_degree, microbatch_size]

    def _line(self, tp_degree: int, microbatch_size: int) -> Line:
        costs = unit_costs(
            self.shape,
            microbatch_size=microbatch_size,
            sequence_length=self.sequence_length,
            workload=self.workload,
        )
        tokens = microbatch_size * self.sequence_length
        whole_carry = tokens * self.shape.hidden_size * ELEMENT_BYTES[self.dtype]
        carry = whole_carry // (tp_degree if self.sequence_parallel else 1)
        kinds = [kind_of(cost.name) for cost in costs]
        widths = {kind: self._widths(kind, tp_degree, microbatch_size) for kind in dict.fromkeys(kinds)}
        in_i = {kind: self._in_i(kind, tp_degree, microbatch_size) for kind in widths}
        keeping = [
            self._unit(cost, widths[kind], tp_degree, microbatch_size, carry) for cost, kind in zip(costs, kinds)
        ]
        units = (
            replace(
                unit,
                in_i=in_i[kind],
                forgets=self._forgets(unit, widths[kind][-1][1], tokens, tp_degree, whole_carry),
            )
            for unit, kind in zip(keeping, kinds)
        )
        return Line(tuple(units), carry, tp_degree if self.sequence_parallel else 1)

    def _forgets(self, unit: Unit, alone: Work, tokens: int, tp_degree: int, whole_carry: int) -> Forgets | None:
        """Bytes by formula, which are exact; times as measured, else as that part of F which has these FLOPs.

        Args:
            alone: the unit as it was measured, without collectives.
        """
        gathers = self.sequence_parallel and tp_degree > 1
        formula = llama_forgets(
            self.shape,
            unit.cost,
            tokens,
            ELEMENT_BYTES[self.dtype],
            tp_degree,
            divisor=tp_degree if gathers else 1,
            gather_ns=self.collective_ns("all_gather", tp_degree, whole_carry, same_host=True) if gathers else 0,
        )
        if formula is None:
            return None
        kind = kind_of(unit.cost.name)
        measured = Measured(kind, tp_degree, gathers, self.sequence_length, self.dtype)
        part = Fraction(alone.forward, max(1, unit.whole.forward))
        what = f"recomputation of {kind}", "taken as that part of F which has its FLOPs"
        return timed(formula, self.calibration, measured, part, lambda: self._say(*what))

    def collective_ns(self, kind: Collective, ranks: int, num_bytes: int, *, same_host: bool) -> int:
        measured = {
            found.num_bytes: found.time.p50_ns
            for found in self.calibration.collectives
            if (found.kind, found.ranks, found.same_host) == (kind, ranks, same_host)
        }
        if not measured:
            where = "inside a node" if same_host else "between nodes"
            self._say(f"{kind} of {ranks} ranks {where}", "modelled from declared rates", kind)
            return self.rates.collective_ns(kind, ranks, num_bytes, same_host=same_host)
        if num_bytes > max(measured):
            raise PlanError(
                f"{kind} of {ranks} ranks was measured up to {max(measured)} bytes, not {num_bytes}; "
                "calibrate larger ones"
            )
        return _between(sorted(measured.items()), num_bytes)

    def hop(self, *, same_host: bool) -> Hop:
        """Latency and bandwidth of the straight line through the smallest and the largest message measured."""
        measured = sorted(
            (found.num_bytes, found.both_ways.p50_ns)
            for found in self.calibration.messages
            if found.same_host == same_host
        )
        if not measured:
            self._say(f"messages {'inside a node' if same_host else 'between nodes'}", "modelled from declared rates")
            return self.rates.hop(same_host=same_host)
        (small, small_ns), (large, large_ns) = measured[0], measured[-1]
        if large == small or large_ns <= small_ns:
            return Hop(large_ns)
        bandwidth = Fraction(large - small, large_ns - small_ns)
        return Hop(max(0, small_ns - int(small / bandwidth)), bandwidth)

    def post_ns(self, num_bytes: int, *, same_host: bool) -> int:
        """Between measured sizes on a straight line, beyond them as much as the nearest one's."""
        measured = sorted(
            (found.num_bytes, found.post_ns) for found in self.calibration.messages if found.same_host == same_host
        )
        if not measured:
            return 0  # `hop` says so
        return _between(measured, min(num_bytes, measured[-1][0]))

    @property
    def overlap(self) -> Overlap:
        found = self.calibration.overlap
        if not found:
            self._say("gradient sums beside compute", "taken to slow nothing down", "overlap")
        return Overlap(*(max(Fraction(1), Fraction(found.get(one, "1"))) for one in ("compute", "collective")))

    def optimizer_ns(self, parameters: int) -> int:
        found = self.calibration
        return found.optimizer_fixed_ns + found.optimizer_per_million_ns * parameters // 10**6

    def interval(self, p50_ns: int) -> TimeInterval:
        """The spread of the units' own times, weighed by how long they take."""
        low, high = self._spread
        return TimeInterval(p10_ns=int(p50_ns * low), p50_ns=p50_ns, p90_ns=int(p50_ns * high))

    @cached_property
    def _spread(self) -> tuple[Fraction, Fraction]:
        spreads = [s for unit in self.calibration.units for s in (unit.forward, unit.input_grad, unit.weight_grad)]
        middle = sum(spread.p50_ns for spread in spreads)
        if middle == 0:
            return Fraction(1), Fraction(1)
        low, high = sum(spread.p10_ns for spread in spreads), sum(spread.p90_ns for spread in spreads)
        return Fraction(low, middle), Fraction(high, middle)

    def call_time(self, kind: Collective, ranks: int, num_bytes: int) -> CallTime:
        """A tensor-parallel call. CPU ranks of a host sum in shared memory what fits there: its copies and additions
        are the rank's own compute, of which a lone rank's is in the unit's time already.

        Raises:
            PlanError: as `collective_ns`.
        """
        shared = sorted(
            (found.num_bytes, (found.time.p50_ns, found.own_cpu_ns, found.lone_cpu_ns))
            for found in self.calibration.collectives
            if kind == "all_reduce" and (found.kind, found.ranks) == ("shared_all_reduce", ranks)
        )
        if not shared or num_bytes > shared[-1][0]:
            return CallTime(0, self.collective_ns(kind, ranks, num_bytes, same_host=True))
        whole, own, lone = (
            _between([(size, times[figure]) for size, times in shared], num_bytes) for figure in range(3)
        )
        return CallTime(max(0, own - lone), max(0, whole - own))

    def _widths(self, kind: str, tp_degree: int, microbatch_size: int) -> Sequence[_Point]:
        """What every measured width of a kind of unit costs at this microbatch size, narrowest first."""
        known = [
            times
            for times in self.calibration.units
            if (times.unit, times.dtype, times.compiled) == (kind, self.dtype, self.compiled)
            and times.sequence_parallel == (self.sequence_parallel and times.tp_degree > 1)
        ]
        of_degree = [times for times in known if times.tp_degree == tp_degree]
        if not of_degree:
            degrees = sorted({times.tp_degree for times in known})
            raise PlanError(
                f"{kind} at tp_degree = {tp_degree}, {self.dtype}{', compiled' * self.compiled} was not measured"
                + (f", only at {', '.join(map(str, degrees))}" if degrees else "")
                + "; calibrate it"
            )
        lengths = sorted({times.sequence_length for times in of_degree})
        if self.sequence_length not in lengths:
            raise PlanError(
                f"{kind} was measured with sequences of {', '.join(map(str, lengths))} tokens, not of "
                f"{self.sequence_length}; calibrate it"
            )
        sizes: dict[int, list[_Point]] = defaultdict(list)
        for times in of_degree:
            if times.sequence_length == self.sequence_length:
                sizes[times.parts].append((times.microbatch_size, _work(times, self.workload)))
        return [
            (parts, self._at_size(kind, sorted(points), microbatch_size)) for parts, points in sorted(sizes.items())
        ]

    def _in_i(self, kind: str, tp_degree: int, microbatch_size: int) -> int:
        """Bytes that a unit holds for a moment in I: as many per sequence as the largest microbatch measured."""
        per_sequence = [
            (times.microbatch_size, times.temporary_bytes)
            for times in self.calibration.units
            if (times.unit, times.tp_degree, times.dtype) == (kind, tp_degree, self.dtype)
            and times.compiled == self.compiled
        ]
        size, num_bytes = max(per_sequence)
        return num_bytes * microbatch_size // size if self.workload == "train" else 0

    def _at_size(self, kind: str, points: Sequence[_Point], microbatch_size: int) -> Work:
        sizes = [size for size, _ in points]
        if not sizes[0] <= microbatch_size <= sizes[-1]:
            raise PlanError(
                f"{kind} was measured with microbatches of {', '.join(map(str, sizes))}, not of {microbatch_size}, and "
                "is not extrapolated; calibrate it"
            )
        return _interpolated(points, microbatch_size)

    def _unit(self, cost: UnitCost, widths: Sequence[_Point], tp_degree: int, microbatch_size: int, carry: int) -> Unit:
        kind = kind_of(cost.name)
        granule = granule_of(cost, tp_degree, self.granule)
        shards = tp_degree if self.sequence_parallel else 1
        alone, called = self._piece(cost, widths, carry, shards), self._with_calls(kind, tp_degree, microbatch_size)
        if tp_degree == 1:
            return Unit(cost, granule, kind == "mlp", alone)
        return Unit(
            cost,
            granule,
            kind == "mlp",
            lambda start, stop: called(alone(start, stop), start == 0, stop == cost.parts),
        )

    def _with_calls(self, kind: str, tp_degree: int, microbatch_size: int) -> Callable[[Work, bool, bool], Work]:
        """The work of a unit's piece -> the same with its collectives."""
        tokens = microbatch_size * self.sequence_length
        num_bytes = tokens * self.shape.hidden_size * ELEMENT_BYTES[self.dtype]
        hides = column_part(kind, self.shape)
        sums_bytes = tp_degree * LOSS_SUMS * 4 * tokens

        def called(work: Work, first: bool, last: bool) -> Work:
            calls = calls_of(kind, first=first, last=last, sequence_parallel=self.sequence_parallel)
            loss = self.call_time("all_gather", tp_degree, sums_bytes) if kind == "head" else None
            return with_calls(work, calls, lambda one: self.call_time(one, tp_degree, num_bytes), hides, loss)

        return called

    def _piece(self, cost: UnitCost, widths: Sequence[_Point], carry: int, shards: int) -> Callable[[int, int], Work]:
        kind = kind_of(cost.name)
        whole = widths[-1][1]
        tokens = carry // (self.shape.hidden_size * ELEMENT_BYTES[self.dtype])
        more = carry * (shards - 1)  # of a tensor that tensor ranks do not share

        @cache
        def piece(start: int, stop: int) -> Work:
            found = whole
            if stop - start < cost.parts:
                if len(widths) == 1 or stop - start < widths[0][0]:
                    self._say(f"pieces of {kind} narrower than {widths[0][0]} parts", "taken as proportional to that")
                found = _measured_piece(widths, stop - start)
                if start:  # a later piece keeps no input and no scale of a norm, and the normed input whole
                    found = found._replace(
                        saved=max(0, found.saved - carry - 4 * tokens + more),
                        until_w=found.until_w + more,
                        parameters=found.parameters - cost.fixed_parameters,
                    )
                if stop == cost.parts:  # the gradient of the unit's sum, and no more that of a rank's part of it
                    found = found._replace(until_w=found.until_w - more)
                found = found if self.workload == "train" else found._replace(saved=0, until_w=0)
            flops = cost.flops * stop // cost.parts - cost.flops * start // cost.parts
            return found._replace(flops=flops)

        return piece

    def _say(self, what: str, how: str, reason: str | None = None) -> None:
        why = self.calibration.not_measured.get(reason or what)
        self._said.setdefault(f"not measured here{f' ({why})' if why else ''}: {what}, {how}")


def _work(times: UnitTimes, workload: str) -> Work:
    """What was measured, without collectives."""
    train = workload == "train"

    def host(kind: Literal["F", "B", "I", "W"]) -> int:
        return times.host[kind].p50_ns if kind in times.host else 0

    def device(spread: Spread) -> int:
        return spread.p50_ns if train else 0

    return Work(
        forward=times.forward.p50_ns,
        backward=device(times.backward),
        input_grad=device(times.input_grad),
        weight_grad=device(times.weight_grad),
        host_forward=host("F"),
        host_backward=host("B") if train else 0,
        host_input_grad=host("I") if train else 0,
        host_weight_grad=host("W") if train else 0,
        saved=times.saved_bytes if train else 0,
        until_w=times.until_w_bytes if train else 0,
        parameters=times.parameters,
    )


def _interpolated(points: Sequence[_Point], place: int) -> Work:
    """Every field on the straight line between the two measured neighbours of a place inside them."""
    after = bisect_left([point for point, _ in points], place)
    if points[after][0] == place:
        return points[after][1]
    (low, below), (high, above) = points[after - 1], points[after]
    return Work(*(a + (b - a) * (place - low) // (high - low) for a, b in zip(below, above)))


def _measured_piece(widths: Sequence[_Point], parts: int) -> Work:
    """A first piece: times between the measured neighbours, or proportional to the narrowest; bytes and parameters on
    the straight line of first pieces, on which a whole unit need not lie (with sequence parallelism it does not).
    """
    found = _interpolated([(0, Work()), *widths], parts)
    if len(widths) == 1:
        return found
    (low, below), (high, above) = widths[0], widths[max(1, len(widths) - 2)]

    def on_line(one: int, other: int) -> int:
        return one + (other - one) * (parts - low) // (high - low)

    return found._replace(
        saved=on_line(below.saved, above.saved),
        until_w=on_line(below.until_w, above.until_w),
        parameters=on_line(below.parameters, above.parameters),
    )


def _between(points: Sequence[tuple[int, int]], place: int) -> int:
    """A time on the straight line between two measured sizes; below the smallest, the smallest's."""
    after = bisect_left([point for point, _ in points], place)
    if after == 0 or points[after][0] == place:
        return points[after][1]
    (low, below), (high, above) = points[after - 1], points[after]
    return below + (above - below) * (place - low) // (high - low)
