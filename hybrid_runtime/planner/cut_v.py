"""Cuts for the V placement: rank r holds a piece from the front of the line and one from its back.

    rank 0    |front|                                   |back|
    rank 1          |front|                       |back|
    rank 2                |front |          back |               the last rank's two stages meet

`whole_v_cut` is exact: a dynamic programme over (first unit not yet given, first unit given from the back).
`fractional_v_cut` is a beam search: fronts end between units, backs at the granule that makes the rank's work equal.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from hybrid_runtime.planner.cut_linear import nearest_parts
from hybrid_runtime.planner.rows import water_level
from hybrid_runtime.planner.work import Boundaries, Line, Load, Position, Work, plus

Weigh = Callable[[int, Work], int]  # (rank, what it holds) -> bytes, without the rows of a sharded embedding
FitsV = Callable[[int, int, int, int, int], bool]  # (rank, first, end, back first, back end)
FLOORS = (Fraction(2, 5), Fraction(1, 4), Fraction(0))  # least share of a chunk in a rank's mean load, tried in turn
_ROUNDS = 4  # the second or third changes nothing more
BEAM = 640  # partial cuts times ranks: 80 on eight ranks


def whole_v_cut(
    weights: Sequence[int], num_ranks: int, fits: FitsV | None = None, floor: Fraction = Fraction(0)
) -> list[tuple[int, int]] | None:
    """The V cut with the smallest largest rank, of those the one whose ranks' two stages differ least in squares.

    Args:
        weights: of the units, non-negative.
        fits: what a rank may hold; whatever fits must fit in part too.
        floor: least weight of a stage, as a part of the mean of ranks.

    Returns:
        (end of its front, begin of its back) of every rank, or None if there is none.
    """
    upto = [0, *accumulate(weights)]
    least = floor * upto[-1] / num_ranks
    low = limit = -(-upto[-1] // num_ranks)
    high, step = upto[-1], max(1, limit // 64)
    best = None
    while best is None:  # from the mean upwards: a high limit admits very many cuts
        best, next_limit = _v_under(upto, num_ranks, limit, least, fits, any_will_do=True)
        if best is None:
            if limit >= high:
                return None
            low, limit, step = next_limit, min(high, max(next_limit, limit + step)), 2 * step
    high = _largest(upto, best)
    while low < high:
        middle = (low + high) // 2
        found, next_limit = _v_under(upto, num_ranks, middle, least, fits, any_will_do=True)
        low, high = (next_limit, high) if found is None else (low, _largest(upto, found))
    return _v_under(upto, num_ranks, high, least, fits, any_will_do=False)[0]


Ends = list[tuple[int, int]]


def _largest(upto: Sequence[int], ends: Ends) -> int:
    """The largest rank of a cut."""
    starts = [(0, len(upto) - 1), *ends]
    return max(upto[end] - upto[front] + upto[back] - upto[begin] for (front, back), (end, begin) in zip(starts, ends))


def _v_under(
    upto: Sequence[int], num_ranks: int, limit: int, least: Fraction, fits: FitsV | None, *, any_will_do: bool
) -> tuple[Ends | None, int]:
    """The best cut in which no rank exceeds the limit, and the next limit that would admit more cuts.

    A forward dynamic programme over (units given from the front, first unit given from the back).
    """
    states: dict[tuple[int, int], tuple[int, tuple[tuple[int, int], ...]]] = {(0, len(upto) - 1): (0, ())}
    next_limit = upto[-1] + 1
    for rank in range(num_ranks):
        ranks_left = num_ranks - 1 - rank
        following: dict[tuple[int, int], tuple[int, tuple[tuple[int, int], ...]]] = {}
        for (front, back), (squares, path) in states.items():
            for end in range(front + 1, back):
                first = upto[end] - upto[front]
                if first > limit:
                    next_limit = min(next_limit, first)
                    break
                if fits is not None and not fits(rank, front, end, back, back):
                    break
                for begin in range(back - 1, end, -1) if ranks_left else (end,):
                    second, between = upto[back] - upto[begin], upto[begin] - upto[end]
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


def whole_units_v(
    line: Line, num_ranks: int, load: Load, room: Callable[[int, Work], bool] | None
) -> Boundaries | None:
    """The best V cut between units of a line, with stages of a fair size if there is one that fits."""

    def fits(rank: int, first: int, end: int, begin: int, back: int) -> bool:
        assert room is not None
        front = line.work(Position(first), Position(end))
        return room(rank, plus(front, line.work(Position(begin), Position(back))))

    weights = [load(unit.whole) for unit in line.units]
    if 2 * num_ranks > len(weights):
        return None
    for floor in FLOORS:
        found = whole_v_cut(weights, num_ranks, None if room is None else fits, floor)
        if found is not None:
            return v_boundaries(found, len(weights))
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
    line: Line,
    num_ranks: int,
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
    (two narrow products take longer than a wide one) is known only when the cut is: it is made again with that in the
    total. Backs end inside units that may be cut and not in attentions, whose head groups are too coarse; because a
    front may end before an attention or before an MLP, one of the choices lands inside an MLP.

    Args:
        weigh: bytes of a rank.
        poured_bytes: of the embedding's rows, to be filled in afterwards so that all ranks hold the same; 0 for none.
        extra: load that every rank has beside its stages.
        share: of a rank's work that its front gets.

    Returns:
        None where the line is too short.
    """
    upto = [load(work) for work in line.upto]
    level_bytes = (weigh(0, line.total) + poured_bytes) // num_ranks
    beside = tuple(extra) or (0,) * num_ranks
    search = _Search(line, num_ranks, load, weigh, level_bytes, share, upto, beside, upto[-1] + sum(beside))
    best: _Partial | None = None
    for _ in range(_ROUNDS):
        found = _best(search, poured_bytes, beam or max(8, BEAM // num_ranks))
        if found is None:
            break
        if best is None or _uneven(found, poured_bytes, num_ranks) < _uneven(best, poured_bytes, num_ranks):
            best = found
        if found.loaded == search.total:
            break
        search = search._replace(total=found.loaded)
    if best is None:
        return None
    fronts = tuple(map(Position, best.fronts))
    return (*fronts, *reversed(best.backs[:-1]))


def _best(search: _Search, poured_bytes: int, beam: int) -> _Partial | None:
    """The best cut of a beam; None where the line is too short."""
    partials = [_Partial(0, 0, (0,), (search.line.end,), 0, ())]
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
    line: Line
    num_ranks: int
    load: Load
    weigh: Weigh
    level_bytes: int
    share: Fraction
    upto: Sequence[int]
    extra: Sequence[int]
    total: int

    def grow(self, partial: _Partial, rank: int, *, exact: bool) -> Iterator[_Partial]:
        """One more rank: every clean end of its front near its share, every begin of its back that makes it equal.

        Args:
            exact: to a granule; else any clean begin next to that.
        """
        front, back = partial.fronts[-1], partial.backs[-1]
        due = (rank + 1) * self.total // self.num_ranks - partial.loaded - self.extra[rank]
        for end in self._ends(front, back, rank):
            for begin in self._begins(end, back, due - self.upto[end] + self.upto[front], exact=exact):
                yield self._with(partial, rank, end, begin)

    def close(self, partial: _Partial) -> _Partial | None:
        """The last rank takes the rest; its two stages meet between units, as near to its share as possible."""
        front, back = partial.fronts[-1], partial.backs[-1]
        last = back.unit if back.part else back.unit - 1
        if front + 1 > last:
            return None
        target = self.upto[front] + int(self.share * (self.total - partial.loaded - self.extra[-1]))
        meets = min(range(front + 1, last + 1), key=lambda end: (abs(self.upto[end] - target), end))
        done = self._with(partial, self.num_ranks - 1, meets, Position(meets))
        return done

    def _with(self, partial: _Partial, rank: int, end: int, begin: Position) -> _Partial:
        work = plus(
            self.line.work(Position(partial.fronts[-1]), Position(end)), self.line.work(begin, partial.backs[-1])
        )
        loaded = self.load(work) + self.extra[rank]
        error = abs(loaded - self.total // self.num_ranks)
        held = self.weigh(rank, work)
        return _Partial(
            partial.excess_bytes + max(0, held - self.level_bytes),
            max(partial.error, error),
            (*partial.fronts, end),
            (*partial.backs, begin),
            partial.loaded + loaded,
            (*partial.held, held),
        )

    def _ends(self, front: int, back: Position, rank: int) -> Iterator[int]:
        """Clean ends of the front within about a layer of its share; at least the nearest one."""
        mean = self.total // self.num_ranks - self.extra[rank]
        target = self.upto[front] + int(self.share * mean)
        last = back.unit - 1 - (self.num_ranks - rank - 1)
        if front + 1 > last:
            return
        reach = max(1, self._layer() * 11 // 10)
        nearest = min(range(front + 1, last + 1), key=lambda end: (abs(self.upto[end] - target), end))
        for end in range(front + 1, last + 1):
            if end == nearest or abs(self.upto[end] - target) <= reach:
                yield end

    def _layer(self) -> int:
        middle = len(self.upto) // 2
        return self.upto[min(middle + 1, len(self.upto) - 1)] - self.upto[max(0, middle - 1)]

    def _begins(self, end: int, back: Position, need: int, *, exact: bool) -> Iterator[Position]:
        """Where a back of this load may begin."""
        target = self._before(back) - need
        index = bisect_right(self.upto, target) - 1
        if need <= 0 or index < end:
            return
        inside = [Position(index, part) for part in self._parts(index, need, back)]
        clean = [Position(place) for place in (index, index + 1) if end < place]
        places = [place for place in (*inside, *clean) if place < back]
        if not places or (exact and not inside):
            return
        if exact:
            yield min(places, key=lambda place: abs(self.load(self.line.work(place, back)) - need))
        else:
            yield from places

    def _before(self, place: Position) -> int:
        inside = self.load(self.line.units[place.unit].piece(0, place.part)) if place.part else 0
        return self.upto[place.unit] + inside

    def _parts(self, index: int, need: int, back: Position) -> Sequence[int]:
        """The granules of a unit from which on there is next to `need`."""
        unit = self.line.units[index]
        if not unit.fine:
            return ()
        stop = back.part if index == back.unit else unit.cost.parts
        behind = self.load(self.line.work(Position(index + 1), back)) if index < back.unit else 0
        return nearest_parts(
            self.line, index, behind - need, lambda unit, part: -self.load(unit.piece(min(part, stop), stop))
        )
