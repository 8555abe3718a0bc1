"""Cuts of a line into stages one after another: between units by dynamic programming, or anywhere by the target.

whole        the largest stage as small as possible under every stage's memory, then as even as possible; exact
fractional   stage q ends where q/S of the work is done, at the nearest granule: inside an MLP, or between the
             head groups of an attention
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

from hybrid_runtime.planner.balance import balanced_sizes
from hybrid_runtime.planner.work import Boundaries, Line, Load, Position, Work

Fits = Callable[[int, Work], bool]  # (stage, what it holds): whether that stage's rank has room for it


def whole_cut(line: Line, num_stages: int, load: Load, fits: Fits | None = None) -> Boundaries | None:
    """The best cut between units; None if there are fewer units than stages, or none that fits."""
    if num_stages > len(line.units):
        return None
    weights = [load(unit.whole) for unit in line.units]
    within = None if fits is None else _by_units(line, fits)
    sizes = balanced_sizes(weights, num_stages, within)
    return None if sizes is None else at_units(sizes)


def at_units(sizes: Sequence[int]) -> Boundaries:
    """Boundaries of stages that hold so many units each."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return tuple(map(Position, ends))


def fractional_cut(line: Line, num_stages: int, load: Load, extra: Sequence[int] = ()) -> Boundaries | None:
    """Stages as equal as granules allow; None where a stage would be left without work.

    Args:
        extra: load that every stage has beside its units.
    """
    upto = [load(work) for work in line.upto]
    beside = list(accumulate(extra, initial=0)) if extra else [0] * (num_stages + 1)
    inside = [Position(0)]
    for stage in range(1, num_stages):
        target = (upto[-1] + beside[-1]) * stage - beside[stage] * num_stages
        places = _around(line, upto, target // num_stages, load)
        allowed = [place for place in places if inside[-1] < place[1]]
        if not allowed:
            return None
        inside.append(min(allowed, key=lambda place: (abs(place[0] * num_stages - target), place[1]))[1])
    found = (*inside, line.end)
    return _refined(line, found, load, extra) if found[-2] < found[-1] else None


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


def _refined(line: Line, boundaries: Boundaries, load: Load, extra: Sequence[int]) -> Boundaries:
    """Moves cuts by single granules while that makes the two stages beside them more equal.

    Where the cost of a piece is measured, two pieces of a unit need not cost what the unit does, so the targets are not
    exact.
    """
    found = list(boundaries)
    for _ in range(len(found)):
        before = list(found)
        for index in range(1, len(found) - 1):
            start, place, stop = found[index - 1 : index + 2]
            beside = extra[index - 1 : index + 1] or (0, 0)

            choices = [position for position in _neighbours(line, place) if start < position < stop]
            found[index] = min(
                [place, *choices],
                key=lambda position: _larger(line, load, (start, position, stop), beside),
            )
        if found == before:
            break
    return tuple(found)


def _larger(line: Line, load: Load, cuts: Sequence[Position], beside: Sequence[int]) -> int:
    """Load of the larger of two neighbouring stages."""
    return max(load(line.work(a, b)) + more for (a, b), more in zip(pairwise(cuts), beside))


def _neighbours(line: Line, place: Position) -> Iterator[Position]:
    granule = line.units[place.unit].granule
    if place.part:
        yield Position(place.unit, place.part - granule)
        more = place.part + granule
        yield Position(place.unit, more) if more < line.units[place.unit].cost.parts else Position(place.unit + 1)


def _by_units(line: Line, fits: Fits) -> Callable[[int, int, int], bool]:
    return lambda stage, first, end: fits(stage, line.work(Position(first), Position(end)))
