"""A model as a line of work to be cut: what every unit, and every piece of one, costs a rank for one microbatch.

    position (unit, part)      (0, 0)        (3, 0)      (3, 96)         (n, 0)
    line                       | embedding ...| 1.mlp ....:.........| ... head |
                                                          a cut inside a unit, at a multiple of its granule

All times are whole nanoseconds (or FLOPs, where nobody declared a rate), all sizes whole bytes of one tensor-parallel
rank. Where the figures come from is `analytic`'s or `calibrated`'s business; cuts, rows, replay and memory know only
this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache, cached_property, lru_cache
from itertools import pairwise
from operator import add, sub
from typing import NamedTuple

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.pieces import Piece
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.step_costs import StageKind


class Work(NamedTuple):
    """What units cost together; two works are added field by field.

    Attributes:
        forward, backward, input_grad, weight_grad: device time of F, B, I and W, collectives not included.
        host_forward, host_backward, host_input_grad, host_weight_grad: what the host needs to launch them.
        tp_forward, tp_backward, tp_input_grad: collectives in F, B and I that nothing hides.
        saved: bytes kept from F on.
        until_w: bytes kept between I and W.
        parameters: of this rank.
        flops: of F, I and W, all tensor-parallel ranks together.
    """

    forward: int = 0
    backward: int = 0
    input_grad: int = 0
    weight_grad: int = 0
    host_forward: int = 0
    host_backward: int = 0
    host_input_grad: int = 0
    host_weight_grad: int = 0
    tp_forward: int = 0
    tp_backward: int = 0
    tp_input_grad: int = 0
    saved: int = 0
    until_w: int = 0
    parameters: int = 0
    flops: int = 0

    @property
    def split_load(self) -> int:
        """Compute time of one microbatch where I and W are apart."""
        return self.forward + self.input_grad + self.weight_grad

    @property
    def fused_load(self) -> int:
        """Compute time of one microbatch where the backward is whole."""
        return self.forward + self.backward


NOTHING = Work()
Load = Callable[[Work], int]


def plus(one: Work, other: Work) -> Work:
    return Work._make(map(add, one, other))


def minus(one: Work, other: Work) -> Work:
    return Work._make(map(sub, one, other))


class Position(NamedTuple):
    """Before part `part` of unit `unit`; part 0 is a clean cut, between two units."""

    unit: int
    part: int = 0


class Longer(NamedTuple):
    """By how much actions take longer, as parts of the unit's time of F; what takes less is below 0."""

    forward: Fraction = Fraction(0)
    backward: Fraction = Fraction(0)
    input_grad: Fraction = Fraction(0)
    weight_grad: Fraction = Fraction(0)


class Forgotten(NamedTuple):
    """What a unit, or a piece of one, forgets after F and computes again at the beginning of its backward.

    Attributes:
        num_bytes: of `saved`, less from F on.
        come_back: bytes that are there at once for a moment of the unit's own I or B.
        longer: its actions on the device.
        host_longer: the same of the host, as parts of the host's time of F.
        collectives: time of those that are done again and that nothing hides.
    """

    num_bytes: int = 0
    come_back: int = 0
    longer: Longer = Longer()
    host_longer: Longer = Longer()
    collectives: int = 0


Forgets = Callable[[RecomputeKind, int, int], Forgotten]  # of parts start .. stop


@dataclass(frozen=True)
class Unit:
    """One unit of the line.

    Attributes:
        cost: FLOPs and parameters of the whole model's unit, for one microbatch.
        granule: a cut may fall inside at multiples of so many parts; 0 where it must stay whole.
        fine: granules are so small that a cut inside hits any target; few heads of an attention are not.
        piece: (start, stop) -> what parts start .. stop cost; the whole unit for (0, cost.parts).
        in_i: bytes that the unit, or a first piece of it, holds for a moment in its I beyond what it keeps before or
            after.
        forgets: what recomputation would make of it; None where nothing is left to choose.
        comes_back: (start, stop) -> `Forgotten.come_back` of a unit that does compute again.
    """

    cost: UnitCost
    granule: int
    fine: bool
    piece: Callable[[int, int], Work]
    in_i: int = 0
    forgets: Forgets | None = None
    comes_back: Callable[[int, int], int] = lambda start, stop: 0

    @cached_property
    def whole(self) -> Work:
        return self.piece(0, self.cost.parts)

    def recomputing(self, kind: RecomputeKind) -> Unit:
        """The unit when it forgets and computes again."""
        forgets = self.forgets
        if forgets is None or kind == "none":
            return self

        @cache
        def piece(start: int, stop: int) -> Work:
            return _forgetting(self.piece(start, stop), forgets(kind, start, stop))

        return replace(
            self, piece=piece, forgets=None, comes_back=lambda start, stop: forgets(kind, start, stop).come_back
        )


def _forgetting(work: Work, forgotten: Forgotten) -> Work:
    device, host = forgotten.longer, forgotten.host_longer
    return work._replace(
        forward=work.forward + int(device.forward * work.forward),
        backward=work.backward + int(device.backward * work.forward),
        input_grad=work.input_grad + int(device.input_grad * work.forward),
        weight_grad=work.weight_grad + int(device.weight_grad * work.forward),
        host_forward=work.host_forward + int(host.forward * work.host_forward),
        host_backward=work.host_backward + int(host.backward * work.host_forward),
        host_input_grad=work.host_input_grad + int(host.input_grad * work.host_forward),
        host_weight_grad=work.host_weight_grad + int(host.weight_grad * work.host_forward),
        tp_backward=work.tp_backward + forgotten.collectives,
        tp_input_grad=work.tp_input_grad + forgotten.collectives,
        saved=max(0, work.saved - forgotten.num_bytes),
    )


@dataclass(frozen=True)
class Line:
    """All units of a model for one tensor-parallel degree and microbatch size.

    Attributes:
        carry_bytes: of what passes a clean cut.
        shards: of sequence parallelism: a clean cut passes that part of the sequence. A cut inside a unit passes two
            whole tensors, the sum so far and the normed input.
    """

    units: tuple[Unit, ...]
    carry_bytes: int
    shards: int = 1
    _recomputing: dict[RecomputeKind, Line] = field(default_factory=dict, compare=False, repr=False)

    def recomputing(self, kind: RecomputeKind) -> Line:
        """The line when its units forget and compute again."""
        if kind not in self._recomputing:
            units = tuple(unit.recomputing(kind) for unit in self.units)
            self._recomputing[kind] = Line(units, self.carry_bytes, self.shards)
        return self._recomputing[kind]

    @cached_property
    def looked_up(self) -> Line:
        """The line when its first unit, the embedding, only sums what the ranks looked up in their rows."""
        first = self.units[0]
        whole = first.whole
        root = Work(tp_forward=whole.tp_forward, tp_backward=whole.tp_backward, tp_input_grad=whole.tp_input_grad)
        units = (replace(first, piece=lambda start, stop: root), *self.units[1:])
        return Line(units, self.carry_bytes, self.shards)

    @cached_property
    def upto(self) -> tuple[Work, ...]:
        """Work of all units before each clean position."""
        sums = [NOTHING]
        for unit in self.units:
            sums.append(plus(sums[-1], unit.whole))
        return tuple(sums)

    @property
    def end(self) -> Position:
        return Position(len(self.units))

    @property
    def total(self) -> Work:
        return self.upto[-1]

    @cached_property
    def work(self) -> Callable[[Position, Position], Work]:
        """What lies between two positions; remembered, for a search asks again and again."""
        return lru_cache(maxsize=1 << 16)(self._between)

    def _between(self, start: Position, stop: Position) -> Work:
        if start.unit == stop.unit:
            return self.units[start.unit].piece(start.part, stop.part) if stop.part > start.part else NOTHING
        found = minus(self.upto[stop.unit], self.upto[start.unit + bool(start.part)])
        if start.part:
            unit = self.units[start.unit]
            found = plus(found, unit.piece(start.part, unit.cost.parts))
        return plus(found, self.units[stop.unit].piece(0, stop.part)) if stop.part else found

    def names(self, start: Position, stop: Position) -> tuple[str, ...]:
        """Units and pieces between two positions, as plan.json writes them."""
        last = stop.unit + bool(stop.part)
        found = []
        for index in range(start.unit, last):
            unit = self.units[index]
            begin = start.part if index == start.unit else 0
            end = stop.part if index == stop.unit else unit.cost.parts
            whole = begin == 0 and end == unit.cost.parts
            found.append(unit.cost.name if whole else str(Piece(unit.cost.name, begin, end)))
        return tuple(found)

    def message_bytes(self, position: Position) -> int:
        """What passes a cut."""
        return 2 * self.whole_carry_bytes if position.part else self.carry_bytes

    @property
    def whole_carry_bytes(self) -> int:
        """Of a carry that is not split over tensor-parallel ranks."""
        return self.carry_bytes * self.shards

    def in_i(self, start: Position, stop: Position) -> int:
        """Bytes that the I of a stage holds for a moment beyond what it keeps before or after: units come in turn."""
        held = most = 0
        for unit, begin, end in self._backwards(start, stop):
            work = unit.piece(begin, end)
            grown = work.until_w - work.saved
            at_once = 0 if begin else unit.in_i  # of an input that I lets go of late: a later piece keeps none
            most = max(most, held + max(0, grown, unit.comes_back(begin, end)) + at_once)
            held += grown
        return most - max(0, held)

    def in_b(self, start: Position, stop: Position) -> int:
        """Bytes that the B of a stage holds for a moment beyond what it keeps before: what one unit computes again,
        less what the units behind it have let go."""
        held = most = 0
        for unit, begin, end in self._backwards(start, stop):
            most = max(most, held + unit.comes_back(begin, end))
            held -= unit.piece(begin, end).saved
        return most

    def _backwards(self, start: Position, stop: Position) -> Iterator[tuple[Unit, int, int]]:
        """Units between two positions, last first, and which of their parts."""
        last = stop.unit + bool(stop.part)
        for index in reversed(range(start.unit, last)):
            unit = self.units[index]
            begin = start.part if index == start.unit else 0
            yield unit, begin, stop.part if index == stop.unit else unit.cost.parts

    def parts_inside(self, index: int) -> range:
        """Where a unit may be cut inside."""
        unit = self.units[index]
        return range(unit.granule, unit.cost.parts, unit.granule) if unit.granule else range(0)


Boundaries = tuple[Position, ...]  # of S stages: S + 1 positions, from the line's start to its end


def stage_works(lines: Sequence[Line], boundaries: Sequence[Position]) -> list[Work]:
    """What every stage costs, each by its own line."""
    return [line.work(*cut) for line, cut in zip(lines, pairwise(boundaries), strict=True)]


def durations(works: Sequence[Work]) -> dict[StageKind, int]:
    """Time of every action: of the device, or of the host where launching takes longer."""
    found: dict[StageKind, int] = {}
    for stage, work in enumerate(works):
        found[stage, Kind.F] = max(work.forward, work.host_forward)
        found[stage, Kind.B] = max(work.backward, work.host_backward)
        found[stage, Kind.I] = max(work.input_grad, work.host_input_grad)
        found[stage, Kind.W] = max(work.weight_grad, work.host_weight_grad)
    return found
