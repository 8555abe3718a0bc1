"""What a decision rule found, and how many more samples it would take where the interval is too wide."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from hybrid_runtime.verdict import Outcome, Reason
from hybrid_runtime.verifier.statistics import ALPHA

NO_SPREAD = "no spread at all between noisy samples: suspicious"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule found.

    Attributes:
        point, lower, upper: the figure as a fraction of 1; PASS looks at one bound and FAIL at the other.
        worst: columns that set the figure: (largest, smallest) for a range, (least busy,) for a utilisation.
        samples: batches or block pairs.
        steps_per_batch: consecutive steps in one batch; 0 where the data is not batched.
        half_width: what the resolution gate looks at; 0 for exact data.
        note: a sentence that explains an INCONCLUSIVE, or warns; may be empty.
        more_needed: about how many more steps (range, floor) or block pairs (ratios) would decide; None where the
            outcome is no INCONCLUSIVE or where more of the same cannot help.
        alpha: error budget of the bounds.
    """

    outcome: Outcome
    reason: Reason | None
    point: Fraction
    lower: Fraction
    upper: Fraction
    worst: tuple[int, ...] = ()
    samples: int = 1
    steps_per_batch: int = 0
    half_width: Fraction = Fraction()
    note: str = ""
    more_needed: int | None = None
    alpha: float = ALPHA

    def because(self, reason: Reason, note: str, more_needed: int | None = None, unit: str = "step") -> Decision:
        """The same figures, decided by nothing; the note says how many more samples would help, if they would."""
        if more_needed is not None:
            note = "; ".join(part for part in (note, more_text(more_needed, unit)) if part)
        return replace(self, outcome=Outcome.INCONCLUSIVE, reason=reason, note=note, more_needed=more_needed)

    def mapped(self, decreasing: Callable[[Fraction], Fraction]) -> Decision:
        """The same decision, its figures put through a decreasing function, so that the bounds change places."""
        lower, upper = decreasing(self.upper), decreasing(self.lower)
        return replace(self, point=decreasing(self.point), lower=lower, upper=upper)


def shrink_to_exclude(limit: Fraction, point: Fraction, lower: Fraction, upper: Fraction) -> Fraction:
    """To which part of its width an interval must shrink so that it leaves the limit out; 0 if the point lies on it.

    1 or more where it leaves it out already, or has no width.
    """
    return shrink_to(abs(limit - point), upper - point if limit > point else point - lower)


def shrink_to(distance: Fraction, reach: Fraction) -> Fraction:
    """To which part of itself `reach` must shrink to fit into `distance`; 1 or more where it fits, or is 0."""
    return distance / reach if reach else Fraction(1)


def more_for(shrink: Fraction, samples: int) -> int | None:
    """How many samples beside `samples` shrink the error to `shrink` of itself, at least 1; None where none can.

    None, too, beyond 10^12 times as many: the point then lies on the limit as far as anybody can tell.
    """
    part = float(shrink)
    return max(1, math.ceil(samples / part**2) - samples) if part > 1e-6 else None


def more_text(more: int, unit: str) -> str:
    """ "about 140 more steps needed", rounded up to two digits."""
    place = 10 ** max(0, len(str(more)) - 2)
    rounded = -(-more // place) * place
    return f"about {rounded} more {unit}{'' if rounded == 1 else 's'} needed"
