"""Cuts of a line into stages one after another: between units by dynamic programming, or anywhere by the target.

whole        the largest stage as small as possible under every stage's memory, then as even as possible; exact
fractional   stage q ends where q/S of the work is done, at the nearest granule: inside an MLP, or between the
             head groups of an attention
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from hybrid_runtime.planner.balance import balanced_parts
from hybrid_runtime.planner.work import Boundaries, Line, Load, Position, Work

_ROUNDS = 6  # where stages run a unit differently; the third or fourth changes nothing more
Fits = Callable[[int, Work], bool]  # (stage, what it holds): whether that stage's rank has room for it


def whole_cut(lines: Sequence[Line], load: Load, fits: Fits | None = None) -> Boundaries | None:
    """The best cut between units; None if there are fewer units than stages, or none that fits.

    Args:
        lines: the model as each stage would run it.
    """
    if len(lines) > len(lines[0].units):
        return None
    weights = {id(line): [load(unit.whole) for unit in line.units] for line in lines}
    within = None if fits is None else _by_units(lines, fits)
    sizes = balanced_parts([weights[id(line)] for line in lines], within)
    return None if sizes is None else at_units(sizes)


def at_units(sizes: Sequence[int]) -> Boundaries:
    """Boundaries of stages that hold so many units each."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return tuple(map(Position, ends))


def fractional_cut(lines: Sequence[Line], load: Load, extra: Sequence[int] = ()) -> Boundaries | None:
    """Stages as equal as granules allow; None where a stage would be left without work.

    What a unit costs may depend on its stage, and then the whole depends on the cuts: they are made again with that.

    Args:
        lines: the model as each stage would run it.
        extra: load that every stage has beside its units.
    """
    extra = extra or [0] * len(lines)
    total = sum(load(line.total) for line in lines) // len(lines) + sum(extra)
    best: tuple[int, Boundaries] | None = None
    for _ in range(_ROUNDS if any(line is not lines[0] for line in lines) else 1):
        found = _filled(lines, load, extra, total)
        if found is None:
            break
        loads = [load(line.work(*cut)) + more for line, cut, more in zip(lines, pairwise(found), extra)]
        best = min(best or (max(loads), found), (max(loads), found))
        if total == (total := sum(loads)):
            break
    return None if best is None else _refined(lines, best[1], load, extra)


def _filled(lines: Sequence[Line], load: Load, extra: Sequence[int], total: int) -> Boundaries | None:
    """Each stage filled up to its part of the total; rounding is against what all stages before have."""
    num_stages = len(lines)
    loads_upto = {id(line): [load(work) for work in line.upto] for line in lines}
    inside = [Position(0)]
    done = 0  # by the stages before, what they have beside their units included
    for stage, line in enumerate(lines[:-1], start=1):
        upto = loads_upto[id(line)]
        done += extra[stage - 1]
        gone = _before(line, upto, inside[-1], load)
        target = total * stage - (done - gone) * num_stages
        places = _around(line, upto, target // num_stages, load)
        allowed = [place for place in places if inside[-1] < place[1]]
        if not allowed:
            return None
        reached, place = min(allowed, key=lambda place: (abs(place[0] * num_stages - target), place[1]))
        done += reached - gone
        inside.append(place)
    return (*inside, lines[-1].end) if inside[-1] < lines[-1].end else None


def _before(line: Line, upto: Sequence[int], place: Position, load: Load) -> int:
    """Load of everything before a position."""
    return upto[place.unit] + (load(line.units[place.unit].piece(0, place.part)) if place.part else 0)


def _around(line: Line, upto: Sequence[int], target: int, load: Load) -> Iterator[tuple[int, Position]]:
    """Positions next to a target, with the work before them."""
    index = min(bisect_right(upto, target), len(line.units)) - 1
    for clean in (index, index + 1):
        if 0 < clean < len(line.units):
            yield upto[clean], Position(clean)
    for part in nearest_parts(line, index, target - upto[index], lambda unit, part: load(unit.piece(0, part))):
        yield upto[index] + load(line.units[index].piece(0, part)), Position(index, part)


def nearest_parts(line: Line, index: int, target: int, loaded: Callable[..., int]) -> Sequence[int]:
    """The two granules of a unit whose load is next to a target; `loaded(unit, part)` grows with the part."""
    inside, unit = line.parts_inside(index), line.units[index]
    if not inside:
        return ()
    after = bisect_right(inside, target, key=lambda part: loaded(unit, part))
    return inside[max(0, after - 1) : after + 1]


def _refined(lines: Sequence[Line], boundaries: Boundaries, load: Load, extra: Sequence[int]) -> Boundaries:
    """Moves cuts by single granules while that makes the two stages beside them more equal.

    Where the cost of a piece is measured, two pieces of a unit need not cost what the unit does, so the targets are not
    exact.
    """
    found = list(boundaries)
    for _ in range(len(found)):
        before = list(found)
        for index in range(1, len(found) - 1):
            start, place, stop = found[index - 1 : index + 2]
            beside = extra[index - 1 : index + 1]
            both = lines[index - 1 : index + 1]

            choices = [position for position in _neighbours(both[0], place) if start < position < stop]
            found[index] = min(
                [place, *choices],
                key=lambda position: _larger(both, load, (start, position, stop), beside),
            )
        if found == before:
            break
    return tuple(found)


def _larger(lines: Sequence[Line], load: Load, cuts: Sequence[Position], beside: Sequence[int]) -> int:
    """Load of the larger of two neighbouring stages."""
    return max(load(line.work(*cut)) + more for line, cut, more in zip(lines, pairwise(cuts), beside))


def _neighbours(line: Line, place: Position) -> Iterator[Position]:
    granule = line.units[place.unit].granule
    if place.part:
        yield Position(place.unit, place.part - granule)
        more = place.part + granule
        yield Position(place.unit, more) if more < line.units[place.unit].cost.parts else Position(place.unit + 1)


def _by_units(lines: Sequence[Line], fits: Fits) -> Callable[[int, int, int], bool]:
    return lambda stage, first, end: fits(stage, lines[stage].work(Position(first), Position(end)))
