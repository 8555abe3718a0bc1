"""Cuts for the V placement: rank r holds a piece from the front of the line and one from its back.

    rank 0    |front|                                   |back|
    rank 1          |front|                       |back|
    rank 2                |front |          back |               the last rank's two stages meet

`whole_v_cut` is exact: a dynamic programme over (first unit not yet given, first unit given from the back).
`fractional_v_cut` is a beam search: fronts end between units, backs at the granule that makes the rank's work equal.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from hybrid_runtime.planner.rows import water_level
from hybrid_runtime.planner.sized import SizedLine
from hybrid_runtime.planner.work import Boundaries, Line, Load, Position, Work, plus

Weigh = Callable[[int, int, int], int]  # (rank, saved bytes, parameters) -> bytes, without rows of an embedding
FitsV = Callable[[int, int, int, int, int], bool]  # (rank, first, end, back first, back end)
FLOORS = (Fraction(2, 5), Fraction(1, 4), Fraction(0))  # least share of a chunk in a rank's mean load, tried in turn
_ROUNDS = 4  # the second or third changes nothing more
FINE = 5_000  # parts of the whole: a total that is right to one of them is right to a granule
BEAM = 640  # partial cuts times ranks: 80 on eight ranks


def whole_v_cut(
    weights: Sequence[Sequence[int]], fits: FitsV | None = None, floor: Fraction = Fraction(0)
) -> list[tuple[int, int]] | None:
    """The V cut with the smallest largest rank, of those the one whose ranks' two stages differ least in squares.

    Args:
        weights: of the units, non-negative, as they weigh in each of the 2p stages.
        fits: what a rank may hold; whatever fits must fit in part too.
        floor: least weight of a stage, as a part of the mean of ranks.

    Returns:
        (end of its front, begin of its back) of every rank, or None if there is none.
    """
    num_ranks = len(weights) // 2
    upto = _Sums.of(weights)
    mean = Fraction(sum(row[-1] for row in upto.stages), len(weights) * num_ranks)
    least = floor * mean
    low = limit = -(-upto.least[-1] // num_ranks)
    high, step = 2 * max(row[-1] for row in upto.stages), max(1, limit // 64)
    best = None
    while best is None:  # from the mean upwards: a high limit admits very many cuts
        best, next_limit = _v_under(upto, limit, least, fits, any_will_do=True)
        if best is None:
            if limit >= high:
                return None
            low, limit, step = next_limit, min(high, max(next_limit, limit + step)), 2 * step
    high = _largest(upto, best)
    while low < high:
        middle = (low + high) // 2
        found, next_limit = _v_under(upto, middle, least, fits, any_will_do=True)
        low, high = (next_limit, high) if found is None else (low, _largest(upto, found))
    return _v_under(upto, high, least, fits, any_will_do=False)[0]


Ends = list[tuple[int, int]]


class _Sums(NamedTuple):
    """Weights of all units before each, per stage; `least` with every unit in the stage where it weighs least."""

    stages: Sequence[Sequence[int]]
    least: Sequence[int]

    @classmethod
    def of(cls, weights: Sequence[Sequence[int]]) -> _Sums:
        least = [min(of_unit) for of_unit in zip(*weights)]
        return cls([[0, *accumulate(row)] for row in weights], [0, *accumulate(least)])


def _largest(upto: _Sums, ends: Ends) -> int:
    """The largest rank of a cut."""
    largest, front, back = 0, 0, len(upto.least) - 1
    for rank, (end, begin) in enumerate(ends):
        first, second = upto.stages[rank], upto.stages[-1 - rank]
        largest = max(largest, first[end] - first[front] + second[back] - second[begin])
        front, back = end, begin
    return largest


def _v_under(
    upto: _Sums, limit: int, least: Fraction, fits: FitsV | None, *, any_will_do: bool
) -> tuple[Ends | None, int]:
    """The best cut in which no rank exceeds the limit, and the next limit that would admit more cuts.

    A forward dynamic programme over (units given from the front, first unit given from the back).
    """
    num_ranks, count = len(upto.stages) // 2, len(upto.least) - 1
    states: dict[tuple[int, int], tuple[int, tuple[tuple[int, int], ...]]] = {(0, count): (0, ())}
    next_limit = 2 * max(row[-1] for row in upto.stages) + 1
    for rank in range(num_ranks):
        ranks_left = num_ranks - 1 - rank
        fronts, backs = upto.stages[rank], upto.stages[-1 - rank]
        following: dict[tuple[int, int], tuple[int, tuple[tuple[int, int], ...]]] = {}
        for (front, back), (squares, path) in states.items():
            for end in range(front + 1, back):
                first = fronts[end] - fronts[front]
                if first > limit:
                    next_limit = min(next_limit, first)
                    break
                if fits is not None and not fits(rank, front, end, back, back):
                    break
                for begin in range(back - 1, end, -1) if ranks_left else (end,):
                    second, between = backs[back] - backs[begin], upto.least[begin] - upto.least[end]
                    if first + second > limit:
                        next_limit = min(next_limit, first + second)
                        break
                    if fits is not None and not fits(rank, front, end, begin, back):
                        break
                    if between > ranks_left * limit:
                        next_limit = min(next_limit, -(-between // ranks_left))
                        continue
                    if min(first, second) < least:
                        continue
                    value = squares + (first - second) ** 2, (*path, (end, begin))
                    if (end, begin) not in following or (not any_will_do and value < following[end, begin]):
                        following[end, begin] = value
        states = following
    best = min(states.values(), default=None)
    return (None if best is None else list(best[1])), max(next_limit, limit + 1)


def v_boundaries(ends: Sequence[tuple[int, int]], count: int) -> Boundaries:
    """Boundaries of the 2p stages of a V cut at units."""
    fronts = [end for end, _ in ends]
    backs = [begin for _, begin in ends]
    return tuple(map(Position, (0, *fronts, *reversed(backs[:-1]), count)))


def whole_units_v(lines: Sequence[Line], load: Load, room: Callable[[int, Work], bool] | None) -> Boundaries | None:
    """The best V cut between units, with stages of a fair size if there is one that fits.

    Args:
        lines: the model as each of the 2p stages would run it.
    """

    def fits(rank: int, first: int, end: int, begin: int, back: int) -> bool:
        assert room is not None
        front = lines[rank].work(Position(first), Position(end))
        return room(rank, plus(front, lines[-1 - rank].work(Position(begin), Position(back))))

    count = len(lines[0].units)
    if len(lines) > count:
        return None
    weights = {id(line): [load(unit.whole) for unit in line.units] for line in lines}
    for floor in FLOORS:
        found = whole_v_cut([weights[id(line)] for line in lines], None if room is None else fits, floor)
        if found is not None:
            return v_boundaries(found, count)
    return None


class _Partial(NamedTuple):
    """Ranks 0 .. r are given their stages.

    Attributes:
        excess_bytes: of all ranks, above the water level.
        error: largest difference of a rank's load from the mean.
        loaded: of all ranks together.
        held: bytes of every rank.
    """

    excess_bytes: int
    error: int
    fronts: tuple[int, ...]
    backs: tuple[Position, ...]
    loaded: int
    held: tuple[int, ...]


def fractional_v_cut(
    lines: Sequence[Line],
    load: Load,
    weigh: Weigh,
    poured_bytes: int,
    *,
    extra: Sequence[int] = (),
    share: Fraction = Fraction(1, 2),
    beam: int | None = None,
) -> Boundaries | None:
    """A V cut whose ranks' loads are equal to a granule, and whose bytes stay below the water level as far as possible.

    Rounding is against the running total, so that no rank is off by more than a granule. What a cut costs by itself
    (two narrow products take longer than a wide one, one stage computes again what another does not) is known only when
    the cut is: it is made again with that in the total. Backs end inside units that may be cut and not in attentions,
    whose head groups are too coarse; because a front may end before an attention or before an MLP, one of the choices
    lands inside an MLP.

    Args:
        lines: the model as each of the 2p stages would run it.
        weigh: bytes of a rank.
        poured_bytes: of the embedding's rows, to be filled in afterwards so that all ranks hold the same; 0 for none.
        extra: load that every rank has beside its stages.
        share: of a rank's work that its front gets.

    Returns:
        None where the line is too short.
    """
    num_ranks = len(lines) // 2
    known = {id(line): SizedLine(line, load) for line in lines}
    sized = [known[id(line)] for line in lines]
    weighed = sum(weigh(0, line.total.saved, line.total.parameters) for line in lines) // len(lines)
    beside = tuple(extra) or (0,) * num_ranks
    total = sum(line.upto[-1] for line in sized) // len(lines) + sum(beside)
    search = _Search(sized, num_ranks, weigh, (weighed + poured_bytes) // num_ranks, share, beside, total)
    best: _Partial | None = None
    for _ in range(_ROUNDS):
        found = _best(search, poured_bytes, beam or max(8, BEAM // num_ranks))
        if found is None:
            break
        if best is None or _uneven(found, poured_bytes, num_ranks) < _uneven(best, poured_bytes, num_ranks):
            best = found
        if abs(found.loaded - search.total) * FINE <= search.total:
            break
        search = search._replace(total=found.loaded)
    if best is None:
        return None
    fronts = tuple(map(Position, best.fronts))
    return (*fronts, *reversed(best.backs[:-1]))


def _best(search: _Search, poured_bytes: int, beam: int) -> _Partial | None:
    """The best cut of a beam; None where the line is too short."""
    partials = [_Partial(0, 0, (0,), (search.lines[0].line.end,), 0, ())]
    for rank in range(search.num_ranks - 1):
        exact = {new for partial in partials for new in search.grow(partial, rank, exact=True)}
        partials = sorted(exact or {new for partial in partials for new in search.grow(partial, rank, exact=False)})
        partials = partials[:beam]
    closed = [found for partial in partials if (found := search.close(partial)) is not None]
    return min(closed, key=lambda done: (max(*done.held, water_level(done.held, poured_bytes)), done), default=None)


def _uneven(done: _Partial, poured_bytes: int, num_ranks: int) -> Fraction:
    """The larger part of the whole by which a rank's load, or its bytes, exceed the mean."""
    level_bytes = max(max(done.held), math.ceil(water_level(done.held, poured_bytes)))
    held = Fraction(level_bytes * num_ranks, sum(done.held) + poured_bytes)
    return max(held, 1 + Fraction(done.error * num_ranks, done.loaded))


class _Search(NamedTuple):
    lines: Sequence[SizedLine]
    num_ranks: int
    weigh: Weigh
    level_bytes: int
    share: Fraction
    extra: Sequence[int]
    total: int

    def grow(self, partial: _Partial, rank: int, *, exact: bool) -> Iterator[_Partial]:
        """One more rank: every clean end of its front near its share, every begin of its back that makes it equal.

        Args:
            exact: to a granule; else any clean begin next to that.
        """
        front, back = partial.fronts[-1], partial.backs[-1]
        upto = self.lines[rank].upto
        due = (rank + 1) * self.total // self.num_ranks - partial.loaded - self.extra[rank]
        for end in self._ends(front, back, rank):
            for begin in self._begins(end, back, rank, due - upto[end] + upto[front], exact=exact):
                yield self._with(partial, rank, end, begin)

    def close(self, partial: _Partial) -> _Partial | None:
        """The last rank takes the rest; its two stages meet between units, as near to its share as possible."""
        front, back = partial.fronts[-1], partial.backs[-1]
        last = back.unit if back.part else back.unit - 1
        if front + 1 > last:
            return None
        upto = self.lines[self.num_ranks - 1].upto
        target = upto[front] + int(self.share * (self.total - partial.loaded - self.extra[-1]))
        meets = _nearest(upto, target, front + 1, last)
        return self._with(partial, self.num_ranks - 1, meets, Position(meets))

    def _with(self, partial: _Partial, rank: int, end: int, begin: Position) -> _Partial:
        front = self.lines[rank].between(Position(partial.fronts[-1]), Position(end))
        back = self.lines[-1 - rank].between(begin, partial.backs[-1])
        loaded = front.load + back.load + self.extra[rank]
        error = abs(loaded - self.total // self.num_ranks)
        held = self.weigh(rank, front.saved + back.saved, front.parameters + back.parameters)
        return _Partial(
            partial.excess_bytes + max(0, held - self.level_bytes),
            max(partial.error, error),
            (*partial.fronts, end),
            (*partial.backs, begin),
            partial.loaded + loaded,
            (*partial.held, held),
        )

    def _ends(self, front: int, back: Position, rank: int) -> Sequence[int]:
        """Clean ends of the front within about a layer of its share; at least the nearest one."""
        line = self.lines[rank]
        mean = self.total // self.num_ranks - self.extra[rank]
        target = line.upto[front] + int(self.share * mean)
        first, last = front + 1, back.unit - 1 - (self.num_ranks - rank - 1)
        if first > last:
            return ()
        reach = max(1, line.layer * 11 // 10)
        near = range(
            bisect_left(line.upto, target - reach, first, last + 1),
            bisect_right(line.upto, target + reach, first, last + 1),
        )
        return near or (_nearest(line.upto, target, first, last),)

    def _begins(self, end: int, back: Position, rank: int, need: int, *, exact: bool) -> Iterator[Position]:
        """Where the back of a rank, of this load, may begin."""
        line = self.lines[-1 - rank]
        before = line.before(back)
        index = bisect_right(line.upto, before - need) - 1
        if need <= 0 or index < end:
            return
        inside = [Position(index, part) for part in line.parts_from(index, need, back)]
        clean = [Position(place) for place in (index, index + 1) if end < place]
        places = [place for place in (*inside, *clean) if place < back]
        if not places or (exact and not inside):
            return
        if exact:
            yield min(places, key=lambda place: abs(line.load_between(place, back, before) - need))
        else:
            yield from places


def _nearest(upto: Sequence[int], target: int, first: int, last: int) -> int:
    """The first of the ends from `first` to `last` whose load is next to a target."""
    after = bisect_left(upto, target, first, last + 1)
    before = bisect_left(upto, upto[max(first, after - 1)], first, last + 1)
    return min((before, min(after, last)), key=lambda end: (abs(upto[end] - target), end))
