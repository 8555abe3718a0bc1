"""Documents that are kept from the training to validate with: the same ones for every seed, mesh and run.

    documents   ....vv........v...........vv......    runs of equal length, in each a stretch v of its documents
    training    ....  ........ ...........  ......    what is left, as one sequence of tokens
    validation      vv        v           vv

A whole stretch, not single documents, so that both parts are a few ranges of tokens, however many documents there are.
There are at most RUNS of them, spread over the corpus, because its parts may be ordered by topic or date.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from hybrid_runtime.data.corpus import Corpus, DocumentSource
from hybrid_runtime.data.permutation import mixed
from hybrid_runtime.data.tokens import Ids
from hybrid_runtime.errors import UsageError

RUNS = 1000
_KEY = 0x76616C6964617465  # "validate"


class Range(NamedTuple):
    """Documents, or tokens, from first to before stop."""

    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Part:
    """Ranges of tokens of a source, one after the other, as a source of its own. Every range begins with a document."""

    name: str
    source: DocumentSource
    ranges: tuple[Range, ...]
    _ends: Ids = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ends = np.cumsum([stop - first for first, stop in self.ranges], dtype=np.int64)
        object.__setattr__(self, "_ends", ends)

    @property
    def vocab_size(self) -> int:
        return self.source.vocab_size

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, length: int) -> Ids:
        """As the source's."""
        found = [self.source.read(first, stop - first) for first, stop, _ in self._within(start, start + length)]
        return found[0] if len(found) == 1 else np.concatenate([np.empty(0, dtype=np.int64), *found])

    def document_starts(self, start: int, stop: int) -> Ids:
        """As the source's."""
        found = [self.source.document_starts(first, end) + shift for first, end, shift in self._within(start, stop)]
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def _within(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(first, stop, shift) in the source of what lies between two positions; shift leads back to positions here."""
        found = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            assert number < len(self.ranges), (start, stop, len(self))
            shift = int(self._ends[number]) - self.ranges[number].stop
            end = min(stop, int(self._ends[number]))
            found.append((start - shift, end - shift, shift))
            start, number = end, number + 1
        return found


def split(corpus: Corpus, fraction: Fraction) -> tuple[Part, Part]:
    """(training, validation): floor(fraction x documents) of a corpus are for validation, at least one.

    Raises:
        UsageError: it has too few documents.
    """
    kept = held_out(corpus.num_documents, fraction)
    if not kept:
        raise UsageError(
            f"{corpus.name}: has {corpus.num_documents} document(s), too few to keep one apart for "
            "[data] validation_fraction; name other documents in [[data.validation_sources]]"
        )
    between = [
        Range(before.stop, after.first)
        for before, after in zip([Range(0, 0), *kept], [*kept, Range(corpus.num_documents, 0)])
        if before.stop < after.first
    ]
    return _part(corpus, between, "training"), _part(corpus, kept, "validation")


def held_out(num_documents: int, fraction: Fraction) -> list[Range]:
    """Ranges of documents to validate with, in order; none if there are fewer than two documents."""
    count = min(max(1, int(num_documents * fraction)), num_documents - 1)
    if count < 1:
        return []
    runs = min(RUNS, count)
    found = []
    for run in range(runs):
        first, stop = num_documents * run // runs, num_documents * (run + 1) // runs
        length = count * (run + 1) // runs - count * run // runs
        room = stop - first - length + 1
        begin = first + int(mixed(np.array([_KEY + run], dtype=np.uint64))[0]) % room
        found.append(Range(begin, begin + length))
    return found


def _part(corpus: Corpus, documents: Sequence[Range], what: str) -> Part:
    ranges = tuple(Range(int(corpus.offsets[first]), int(corpus.offsets[stop])) for first, stop in documents)
    return Part(f"{corpus.name} ({what})", corpus, ranges)
