"""Which stages compute again what they forget, so that every rank fits its memory: few, and where it costs least.

    layout --cut--> stages --does a rank lack memory?--> a stage forgets more --cut anew--> ... --> nobody lacks any

Choosing and cutting alternate, for what a unit costs depends on what its stage forgets, and stages only ever forget
more, so that this settles. At given cuts the stage is chosen that frees most of what is lacking for the time that it
adds. What that leaves to be gained, small steps find: `forgetting_otherwise` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil
from typing import NamedTuple, Protocol

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.planner.evaluate import buffer_bytes
from hybrid_runtime.planner.layout import KINDS, Layout, Setting
from hybrid_runtime.planner.rows import water_level
from hybrid_runtime.planner.stage_costs import kept_bytes
from hybrid_runtime.planner.staged import Staged, embedding_parameters, forgetting, load_of, state_of, weigh
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.schedule.replayed import peak_of_rank
from hybrid_runtime.schedule.rows import Rows

SURELY = Fraction(19, 20)  # of what a schedule's figures for equal stages say, a rank holds at least
CLEARLY = Fraction(101, 100)  # of the memory: what holds more need not be replayed


class Holding(Protocol):
    """How much memory stages need."""

    def of_rank(self, staged: Staged, rank: int) -> int:
        """Bytes of what depends on one rank's stages alone."""

    def filled(self, staged: Staged, of_ranks: Sequence[int]) -> Sequence[int]:
        """Bytes of all ranks, with what they share: rows of an embedding, as they are expected to be filled in."""


class ByFigures(NamedTuple):
    """By what schedules are known to hold with equal stages, before any order of actions is made.

    Attributes:
        part: of it, that is counted.
    """

    model: StepModel
    part: Fraction = SURELY

    def of_rank(self, staged: Staged, rank: int) -> int:
        state = state_of(staged.layout, self.model)
        work = staged.rank_work(rank)
        return int(weigh(staged.line, staged.layout, state, rank, work, staged.tied_parameters) * self.part)

    def filled(self, staged: Staged, of_ranks: Sequence[int]) -> Sequence[int]:
        return of_ranks


class ByOrder(NamedTuple):
    """By the order of a schedule's actions, which alone decides what is held at once."""

    order: Rows
    setting: Setting
    model: StepModel

    def of_rank(self, staged: Staged, rank: int) -> int:
        beside = self.setting.beside_bytes[rank] if self.setting.beside_bytes else 0
        states = state_of(staged.layout, self.model).held(staged.rank_parameters(rank))
        return states + peak_of_rank(self.order, rank, kept_bytes(staged, rank)) + buffer_bytes(staged, rank) + beside

    def filled(self, staged: Staged, of_ranks: Sequence[int]) -> Sequence[int]:
        layout = staged.layout
        if not layout.sharded:
            return of_ranks
        state = state_of(layout, self.model)
        if layout.rows is not None:
            hidden, tp = self.setting.shape.hidden_size, layout.mesh.tp_degree
            return [held + state.held(rows * hidden // tp) for held, rows in zip(of_ranks, layout.rows)]
        level = ceil(water_level(of_ranks, state.held(embedding_parameters(layout, self.setting))))
        return [max(held, level) for held in of_ranks]


def held_by_rank(staged: Staged, holding: Holding) -> list[int]:
    """Bytes of every pipeline rank."""
    ranks = range(staged.layout.mesh.pp_degree)
    return list(holding.filled(staged, [holding.of_rank(staged, rank) for rank in ranks]))


def may_fit(held: Sequence[int], setting: Setting) -> bool:
    """Whether ranks that hold this by an order of actions are worth a replay: ranks that turn out to get no rows look
    none up, and have a little more room.
    """
    return setting.memory_bytes is None or max(held) <= setting.memory_bytes * CLEARLY


class _Choice(NamedTuple):
    """One stage forgets more.

    Attributes:
        gain: bytes that are lacking no more, per time that it adds.
    """

    gain: Fraction
    stage: int
    kind: RecomputeKind
    of_ranks: list[int]
    lacking: list[int]


def forgetting_enough(staged: Staged, setting: Setting, model: StepModel, holding: Holding) -> Layout | None:
    """The layout whose stages, cut as they are, forget enough to fit, or as much as helps them: cut anew, it may fit.

    None where nothing helps, or it fits already.
    """
    search = _Search(staged, setting, model, holding)
    while any(search.lacking):
        best = max(search.choices(), key=lambda choice: (choice.gain, -choice.stage), default=None)
        if best is None or best.gain <= 0:
            break
        search.take(best)
    return None if search.staged is staged else search.staged.layout


class _Search:
    """Stages that forget more and more; what a rank holds is calculated once for everything that it may forget."""

    def __init__(self, staged: Staged, setting: Setting, model: StepModel, holding: Holding) -> None:
        assert setting.memory_bytes is not None
        self.staged = staged
        self._setting, self._model, self._holding, self._limit = setting, model, holding, setting.memory_bytes
        self._load = load_of(staged.layout)
        self._known: dict[tuple[int, tuple[RecomputeKind, ...]], int] = {}
        self._added: dict[tuple[int, RecomputeKind], int] = {}
        self._of_ranks = [holding.of_rank(staged, rank) for rank in range(staged.layout.mesh.pp_degree)]
        self.lacking = self._above(self._of_ranks)

    def choices(self) -> Iterator[_Choice]:
        """Every stage of a rank that lacks memory, with everything more that it may forget."""
        before = sum(self.lacking)
        kinds = self.staged.layout.recomputes
        for stage, rank in enumerate(self.staged.stage_to_rank):
            for kind in more_than(kinds[stage], self._setting) if self.lacking[rank] else ():
                of_ranks = [*self._of_ranks]
                of_ranks[rank] = self._held(stage, kind, rank)
                lacking = self._above(of_ranks)
                added = self._load_of(stage, kind) - self._load_of(stage, kinds[stage])
                yield _Choice(Fraction(before - sum(lacking), max(1, added)), stage, kind, of_ranks, lacking)

    def take(self, choice: _Choice) -> None:
        """The stage forgets that from now on."""
        self.staged = forgetting(self.staged, choice.stage, choice.kind, self._model)
        self._of_ranks, self.lacking = choice.of_ranks, choice.lacking

    def _above(self, of_ranks: Sequence[int]) -> list[int]:
        return [max(0, held - self._limit) for held in self._holding.filled(self.staged, of_ranks)]

    def _held(self, stage: int, kind: RecomputeKind, rank: int) -> int:
        layout = self.staged.layout
        own = tuple(
            kind if other == stage else layout.recomputes[other]
            for other, owner in enumerate(self.staged.stage_to_rank)
            if owner == rank
        )
        if (rank, own) not in self._known:
            tried = forgetting(self.staged, stage, kind, self._model)
            self._known[rank, own] = self._holding.of_rank(tried, rank)
        return self._known[rank, own]

    def _load_of(self, stage: int, kind: RecomputeKind) -> int:
        if (stage, kind) not in self._added:
            self._added[stage, kind] = self._load(forgetting(self.staged, stage, kind, self._model).works[stage])
        return self._added[stage, kind]


def more_than(kind: RecomputeKind, setting: Setting) -> tuple[RecomputeKind, ...]:
    """What a stage may forget beyond that."""
    return tuple(more for more in setting.recomputes if KINDS.index(more) > KINDS.index(kind))


def all_forgetting_more(layout: Layout, setting: Setting) -> Layout | None:
    """The stages that forget least forget the next more; None where there is no more.

    For when nobody knows why a layout has no order of actions, and so not whose memory is short.
    """
    least = min(layout.recomputes, key=KINDS.index)
    more = more_than(least, setting)
    return layout.forgetting([more[0] if kind == least else kind for kind in layout.recomputes]) if more else None


def forgetting_otherwise(layout: Layout, setting: Setting) -> Iterator[Layout]:
    """Layouts in which one stage forgets less, or more, or one less and another more: small steps to something better.

    Less comes first, of the last stage, which holds the fewest microbatches.
    """
    less = [one for stage in reversed(range(len(layout.recomputes))) for one in _changed(layout, stage, setting, -1)]
    yield from less
    for stage in range(len(layout.recomputes)):
        yield from _changed(layout, stage, setting, +1)
    for one in less:
        for stage, (before, after) in enumerate(zip(layout.recomputes, one.recomputes)):
            if before == after:
                yield from _changed(one, stage, setting, +1)


def _changed(layout: Layout, stage: int, setting: Setting, way: int) -> Iterator[Layout]:
    """The layouts in which one stage forgets more (+1) or less (-1)."""
    own = KINDS.index(layout.recomputes[stage])
    for kind in setting.recomputes:
        if (KINDS.index(kind) - own) * way > 0:
            yield layout.with_kind(stage, kind)
