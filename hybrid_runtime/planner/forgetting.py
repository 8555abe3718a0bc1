"""What forgetting costs in time, as calibrated: the times of a unit that computes again, less those of one that keeps.

    F      usually a little less: the inside of the unit makes no graph
    B, I   the products done again, and what FLOPs do not count: norms, activations, calls

Both were measured in the same rounds, whole and at one microbatch size; at other sizes, and of pieces, the differences
are taken as the same parts of F.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.calibration import Calibration, Spread, UnitTimes
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.planner.work import Forgets, Forgotten, Longer


class Measured(NamedTuple):
    """What a row of a calibration is looked up by, but for its width and microbatch size."""

    unit: str
    tp_degree: int
    sequence_parallel: bool
    sequence_length: int
    dtype: str


def timed(formula: Forgets, calibration: Calibration, of: Measured, part: Fraction, say: Callable[[], None]) -> Forgets:
    """Bytes and collectives by formula, times as measured; by formula too where they were not, which `say` is told.

    Args:
        part: of the unit's F, what was measured: the rest are collectives.
    """

    def forgets(kind: RecomputeKind, start: int, stop: int) -> Forgotten:
        found, pair = formula(kind, start, stop), _pair(calibration, of, kind)
        if pair is None:
            say()
            return found
        device, host = _longer(*pair, _device), _longer(*pair, _host)
        return found._replace(
            longer=Longer(*(part * share for share in device)), host_longer=Longer(*(part * share for share in host))
        )

    return forgets


def _pair(calibration: Calibration, of: Measured, kind: RecomputeKind) -> tuple[UnitTimes, UnitTimes] | None:
    """The whole unit that keeps, and the one that forgets."""
    forgetting = [times for times in _rows(calibration.forgetting, of) if times.recompute == kind]
    for other in forgetting:
        for times in _rows(calibration.units, of):
            if (times.parts, times.microbatch_size) == (other.parts, other.microbatch_size):
                return times, other
    return None


def _rows(rows: Iterable[UnitTimes], of: Measured) -> list[UnitTimes]:
    return [
        times
        for times in rows
        if Measured(times.unit, times.tp_degree, times.sequence_parallel, times.sequence_length, times.dtype) == of
    ]


def _longer(
    kept: UnitTimes, forgotten: UnitTimes, times_of: Callable[[UnitTimes], tuple[Spread | None, ...]]
) -> Longer:
    pairs = list(zip(times_of(kept), times_of(forgotten), strict=True))
    whole = pairs[0][0]
    if whole is None or whole.p50_ns == 0:
        return Longer()
    return Longer(*(Fraction(b.p50_ns - a.p50_ns, whole.p50_ns) if a and b else Fraction(0) for a, b in pairs))


def _device(times: UnitTimes) -> tuple[Spread | None, ...]:
    return times.forward, times.backward, times.input_grad, times.weight_grad


def _host(times: UnitTimes) -> tuple[Spread | None, ...]:
    return times.host.get("F"), times.host.get("B"), times.host.get("I"), times.host.get("W")
