"""`ServingCosts` as `calibrate` measured them through the cache: straight lines between measured sizes.

    attn              time at n tokens at the begin of a sequence; what is behind one costs by pairs of query and key,
                      in a decode by keys
    mlp, embedding    time at n tokens, whoever's they are
    head              time at so many wanted rows, the choice of the most likely token with it

Above the largest measured size a time grows in proportion, and `notes` says so. What half a unit takes says what of a
unit does not halve with it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from typing import Literal, NamedTuple

from hybrid_runtime.calibration import Calibration, ServedItemTimes, ServedUnitTimes
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.planner.calibrated import CalibratedCosts
from hybrid_runtime.planner.serving_costs import TOKEN_BYTES, Added, UnitTime
from hybrid_runtime.planner.serving_items import ItemSize, decode_size, prefill_size
from hybrid_runtime.planner.tp_calls import CallTime
from hybrid_runtime.predicted import LABELS, Label, Source, TimeInterval

Ranks = Literal["one", "pipeline", "tensor"]

_SHORT, _LONG = 0, -1  # of the points at one number of tokens: by pairs


class _Point(NamedTuple):
    """A measured item: its tokens, the pairs (or keys) of its attention, and its time."""

    tokens: int
    pairs: int
    time_ns: int


@dataclass(frozen=True)
class CalibratedServing:
    """Measured costs of serving.

    Attributes:
        calibration: with `served`.
        network: the same calibration's collectives and messages.
        dtype: of the model.
    """

    calibration: Calibration
    network: CalibratedCosts
    dtype: str
    _said: dict[str, None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def source(self) -> Source:
        return "calibration"

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return self.calibration.fingerprint

    @property
    def labels(self) -> Mapping[str, Label]:
        return LABELS["calibration"]

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._said, *self.network.notes)

    @property
    def paces(self) -> tuple[int, ...]:
        return self.calibration.served_paces

    def unit(self, kind: str, tp_degree: int, size: ItemSize) -> UnitTime:
        if kind == "head" and not size.wanted:
            return UnitTime(0, 0)
        of_kind = "decode" if kind == "head" else size.kind
        points = self._points.get((kind, tp_degree, of_kind), {})
        if not points:
            degrees = sorted({row.tp_degree for row in self.calibration.served})
            known = f", only at {', '.join(map(str, degrees))}" if degrees else ""
            raise PlanError(
                f"{kind} at tp_degree = {tp_degree} was not measured with requests{known}; calibrate this file again"
            )
        tokens = size.wanted if kind == "head" else size.tokens
        pairs = (size.keys if size.kind == "decode" else size.pairs) if kind == "attn" else None
        total = self._time(kind, points, tokens, pairs)
        fixed = min(total, self._fixed.get((kind, tp_degree), 0))
        return UnitTime(fixed, total - fixed)

    def _time(self, kind: str, points: Mapping[int, Sequence[_Point]], tokens: int, pairs: int | None) -> int:
        sizes = self._sizes(points)
        after = bisect_left(sizes, tokens)
        if after == len(sizes):
            self._say(f"{kind} with more than {sizes[-1]} tokens in an item", "taken as proportional")
            part = Fraction(tokens, sizes[-1])
            return int(part * _at(points[sizes[-1]], None if pairs is None else int(pairs / part)))
        if sizes[after] == tokens or after == 0:
            return _at(points[sizes[after]], pairs)
        low, high = sizes[after - 1], sizes[after]
        part = Fraction(tokens - low, high - low)
        below, above = (_at(points[size], None if pairs is None else pairs * size // tokens) for size in (low, high))
        return int(below + part * (above - below))

    def _sizes(self, points: Mapping[int, Sequence[_Point]]) -> list[int]:
        return sorted(points)

    @cached_property
    def _points(self) -> Mapping[tuple[str, int, str], Mapping[int, Sequence[_Point]]]:
        """By unit, degree and kind of item: by tokens, whole units, the fewest pairs first."""
        whole = self._parts
        found: dict[tuple[str, int, str], dict[int, list[_Point]]] = {}
        for row in self.calibration.served:
            if row.dtype == self.dtype and row.parts == whole[row.unit]:
                point = _point(row)
                by_tokens = found.setdefault((row.unit, row.tp_degree, row.kind), {})
                by_tokens.setdefault(point.tokens, []).append(point)
        return {key: {size: sorted(points) for size, points in by.items()} for key, by in found.items()}

    @cached_property
    def _parts(self) -> Mapping[str, int]:
        """Of every kind of unit, those of the whole."""
        found: dict[str, int] = {}
        for row in self.calibration.served:
            found[row.unit] = max(row.parts, found.get(row.unit, 0))
        return found

    @cached_property
    def _fixed(self) -> Mapping[tuple[str, int], int]:
        """What of a unit's smallest item does not halve with the unit."""
        rows = self.calibration.served
        found = {}
        for half in rows:
            parts = self._parts[half.unit]
            if half.parts < parts:
                same = half.model_copy(update={"parts": parts})
                whole = next((row for row in rows if _is_same_item(row, same)), None)
                part = Fraction(half.parts, parts)
                if whole is not None:
                    fixed = (half.time.p50_ns - part * whole.time.p50_ns) / (1 - part)
                    found[half.unit, half.tp_degree] = max(0, int(fixed))
        return found

    def all_reduce(self, tp_degree: int, num_bytes: int) -> CallTime:
        return self.network.call_time("all_reduce", tp_degree, num_bytes)

    def all_gather(self, tp_degree: int, num_bytes: int) -> CallTime:
        return CallTime(0, self.network.collective_ns("all_gather", tp_degree, num_bytes, same_host=True))

    def waits_ns(self, tp_degree: int, size: ItemSize, compute_ns: int) -> int | None:
        """More ranks are taken to wait as two do."""
        if not self._added_by("tensor"):
            return None
        name = "prefill_waits_ppm" if size.kind == "prefill" else "decode_waits_ppm"
        return compute_ns * self._at_rows("tensor", name, size.rows) // 10**6

    def message_ns(self, num_bytes: int, *, same_host: bool) -> int:
        found = self._added_by("pipeline") if same_host else ()
        measured = sorted((hop.num_bytes, hop.time_ns) for one in found for hop in one.hops)
        if measured:
            return _on_line(measured, num_bytes)
        hop = self.network.hop(same_host=same_host)
        return int(hop.latency + hop.transfer(num_bytes))

    def back_ns(self, rows: int, *, same_host: bool) -> int:
        if same_host and self._added_by("pipeline"):
            return self._at_rows("pipeline", "back_ns", rows)
        return self.message_ns(rows * TOKEN_BYTES, same_host=same_host)

    def added(self, mesh: Mesh, rows: int) -> Added:
        """On stages of several ranks, what two of them on one stage add and what two stages add come together."""
        tensor = mesh.tp_degree > 1 and bool(self._added_by("tensor"))
        ranks: Ranks = (
            "pipeline" if mesh.pp_degree > 1 and self._added_by("pipeline") else "tensor" if tensor else "one"
        )
        if not self._added_by(ranks):
            self._say("what the engine adds to an item", "counted as 0")
            return Added()
        names = ("stage_ns", "before_ns", "after_ns", "next_ns", "fetch_ns")
        late_ns = self._at_rows("tensor", "late_ns", rows) if tensor else 0
        return Added(**{name: self._at_rows(ranks, name, rows) for name in names}, late_ns=late_ns)

    def _added_by(self, ranks: Ranks) -> tuple[ServedItemTimes, ...]:
        """By rows, the fewest first."""
        return self._engine.get(ranks, ())

    @cached_property
    def _engine(self) -> Mapping[Ranks, tuple[ServedItemTimes, ...]]:
        rows = sorted(self.calibration.served_items, key=lambda one: one.rows)
        return {ranks: tuple(group) for ranks, group in groupby(sorted(rows, key=_ranks), _ranks)}

    def _at_rows(self, ranks: Ranks, name: str, rows: int) -> int:
        return _on_line([(one.rows, getattr(one, name)) for one in self._added_by(ranks)], rows)

    def interval(self, p50_ns: int) -> TimeInterval:
        """The spread of the units' own times, weighed by how long they take."""
        rows = self.calibration.served
        middle = max(1, sum(row.time.p50_ns for row in rows))
        low, high = sum(row.time.p10_ns for row in rows), sum(row.time.p90_ns for row in rows)
        return TimeInterval(p10_ns=p50_ns * low // middle, p50_ns=p50_ns, p90_ns=p50_ns * high // middle)

    def _say(self, what: str, how: str) -> None:
        self._said.setdefault(f"not measured here: {what}, {how}")


def _ranks(one: ServedItemTimes) -> Ranks:
    return one.ranks


def _on_line(points: Sequence[tuple[int, int]], place: int) -> int:
    """The value there, on the straight line through the first and the last point; not below the smallest of them."""
    (first, low), (last, high) = points[0], points[-1]
    if first == last:
        return low
    return max(min(low, high), low + (high - low) * (place - first) // (last - first))


def _point(row: ServedUnitTimes) -> _Point:
    if row.kind == "decode":
        size = decode_size(row.rows, row.start + 1)
        return _Point(size.tokens, size.keys, _time_ns(row))
    size = prefill_size(row.rows, row.start, row.length, 0)
    return _Point(size.tokens, size.pairs, _time_ns(row))


def _time_ns(row: ServedUnitTimes) -> int:
    """Of the device, or of the host where launching takes longer."""
    return max(row.time.p50_ns, row.host.p50_ns)


def _is_same_item(one: ServedUnitTimes, other: ServedUnitTimes) -> bool:
    names = ("unit", "tp_degree", "dtype", "parts", "kind", "rows", "start", "length")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _at(points: Sequence[_Point], pairs: int | None) -> int:
    """The time at these pairs, on the line through the fewest and the most that were measured; None for the fewest."""
    short, long = points[_SHORT], points[_LONG]
    if pairs is None or long.pairs == short.pairs:
        return short.time_ns
    slope = max(Fraction(0), Fraction(long.time_ns - short.time_ns, long.pairs - short.pairs))
    return max(0, int(short.time_ns + slope * (pairs - short.pairs)))
