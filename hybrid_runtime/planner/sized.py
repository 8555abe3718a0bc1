"""A line of units in the three figures that a search for cuts asks for a million times, in place of whole `Work`s."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from hybrid_runtime.planner.cut_linear import nearest_parts
from hybrid_runtime.planner.work import Line, Load, Position


class Size(NamedTuple):
    """Of units: their load, and of `Work` what decides the bytes that they hold."""

    load: int
    saved: int
    parameters: int


class SizedLine:
    """One line, for one measure of load; a load is a sum of figures of `Work`, so loads add up as works do."""

    def __init__(self, line: Line, load: Load) -> None:
        self.line = line
        self._load = load
        self.upto = [load(work) for work in line.upto]
        self._saved = [work.saved for work in line.upto]
        self._parameters = [work.parameters for work in line.upto]
        self._tails: dict[int, list[int]] = {}
        self._pieces: dict[tuple[int, int, int], Size] = {}
        self.layer = _layer(self.upto)

    def between(self, start: Position, stop: Position) -> Size:
        """What lies between two positions, as `Line.work`."""
        if start.unit == stop.unit:
            return self._piece(start.unit, start.part, stop.part) if stop.part > start.part else Size(0, 0, 0)
        first, last = start.unit + bool(start.part), stop.unit
        load = self.upto[last] - self.upto[first]
        saved = self._saved[last] - self._saved[first]
        parameters = self._parameters[last] - self._parameters[first]
        if start.part:
            tail = self._piece(start.unit, start.part, self.line.units[start.unit].cost.parts)
            load, saved, parameters = load + tail.load, saved + tail.saved, parameters + tail.parameters
        if stop.part:
            head = self._piece(stop.unit, 0, stop.part)
            load, saved, parameters = load + head.load, saved + head.saved, parameters + head.parameters
        return Size(load, saved, parameters)

    def load_between(self, start: Position, stop: Position, before_stop: int) -> int:
        """The load alone, where that of everything before `stop` is known."""
        if not start.part:
            return before_stop - self.upto[start.unit]
        if start.unit == stop.unit:
            return self._piece(start.unit, start.part, stop.part).load
        tail = self._piece(start.unit, start.part, self.line.units[start.unit].cost.parts)
        return before_stop - self.upto[start.unit + 1] + tail.load

    def before(self, place: Position) -> int:
        """Load of everything before a position."""
        return self.upto[place.unit] + (self._piece(place.unit, 0, place.part).load if place.part else 0)

    def parts_from(self, index: int, need: int, back: Position) -> Sequence[int]:
        """The granules of a unit from which on there is next to `need`, up to `back`."""
        unit = self.line.units[index]
        if not unit.fine:
            return ()
        if index == back.unit:
            stop = back.part
            return nearest_parts(
                self.line, index, -need, lambda unit, part: -self._load(unit.piece(min(part, stop), stop))
            )
        behind = self.before(back) - self.upto[index + 1]
        inside = self.line.parts_inside(index)
        if index not in self._tails:
            self._tails[index] = [-self._load(unit.piece(part, unit.cost.parts)) for part in inside]
        after = bisect_right(self._tails[index], behind - need)
        return inside[max(0, after - 1) : after + 1]

    def _piece(self, unit: int, start: int, stop: int) -> Size:
        key = unit, start, stop
        if key not in self._pieces:
            work = self.line.units[unit].piece(start, stop)
            self._pieces[key] = Size(self._load(work), work.saved, work.parameters)
        return self._pieces[key]


def _layer(upto: Sequence[int]) -> int:
    """Load of a layer in the middle of a line."""
    middle = len(upto) // 2
    return upto[min(middle + 1, len(upto) - 1)] - upto[max(0, middle - 1)]
