"""Several sources by weight: which source sample number p comes from, and which of the source's samples it is.

A tree of halvings: of the n first samples that reach a node, its left branch gets n x (its share), rounded. So the
question is answered from p alone, and no share is ever off: of any first n samples, a source has n x weight to within
half a sample per level of the tree.

    weights 5 : 3 : 2      p   0 1 2 3 4 5 6 7 8 9
                           a   x   x   x   x   x        a | b c    half of all
                           b     x       x       x      b | c      3 of every 5 of the others
                           c         x       x
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from math import lcm
from typing import NamedTuple

from hybrid_runtime.data.tokens import TokenSource


class Drawn(NamedTuple):
    """A sample's source, and the sample's number among those of the source."""

    source: int
    number: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """Sources and their weights.

    Attributes:
        weights: above 0; only their proportions matter.
    """

    sources: tuple[TokenSource, ...]
    weights: tuple[Fraction, ...]
    _sums: tuple[int, ...] = field(init=False, repr=False)  # of the first k weights, over one denominator

    def __post_init__(self) -> None:
        assert len(self.sources) == len(self.weights) > 0
        assert min(self.weights) > 0, self.weights
        scale = lcm(*(weight.denominator for weight in self.weights))
        object.__setattr__(self, "_sums", tuple(accumulate((int(w * scale) for w in self.weights), initial=0)))

    @property
    def name(self) -> str:
        return " + ".join(source.name for source in self.sources)

    def __len__(self) -> int:
        """Tokens of all sources."""
        return sum(map(len, self.sources))

    def draw(self, position: int) -> Drawn:
        """Where sample `position` (from 0) comes from."""
        first, stop, sums = 0, len(self.sources), self._sums
        while stop - first > 1:
            half = (first + stop) // 2
            left, whole = sums[half] - sums[first], sums[stop] - sums[first]
            before = (2 * position * left + whole) // (2 * whole)
            if (2 * (position + 1) * left + whole) // (2 * whole) > before:
                position, stop = before, half
            else:
                position, first = position - before, half
        return Drawn(first, position)


def mixture_of(source: TokenSource | Mixture) -> Mixture:
    """One source is a mixture too."""
    return source if isinstance(source, Mixture) else Mixture((source,), (Fraction(1),))
