"""Which stages compute again what they forget, so that every rank fits its memory: few, and where it costs least.

    layout --cut--> stages --does a rank lack memory?--> a stage forgets more --cut anew--> ... --> nobody lacks any

Choosing and cutting alternate, for what a unit costs depends on what its stage forgets, and stages only ever forget
more, so that this settles. At given cuts the stage is chosen that frees most of what is lacking for the time that it
adds. What that leaves to be gained, small steps find: `forgetting_otherwise` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.planner.evaluate import held_bytes
from hybrid_runtime.planner.layout import KINDS, Layout, Setting
from hybrid_runtime.planner.stage_costs import kept_bytes
from hybrid_runtime.planner.staged import Staged, forgetting, load_of, state_of, weigh
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
        """Bytes of all ranks, with what they share."""


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
    """By the order of a schedule's actions, which alone decides what is held at once; rows are filled in."""

    order: Rows
    setting: Setting
    model: StepModel

    def of_rank(self, staged: Staged, rank: int) -> int:
        return peak_of_rank(self.order, rank, kept_bytes(staged))

    def filled(self, staged: Staged, of_ranks: Sequence[int]) -> Sequence[int]:
        return held_bytes(staged, of_ranks, self.setting, self.model)


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
    """One stage forgets more."""

    gain: Fraction  # bytes that are lacking no more, per time that it adds
    stage: int
    staged: Staged
    of_ranks: list[int]
    lacking: list[int]


def forgetting_enough(staged: Staged, setting: Setting, model: StepModel, holding: Holding) -> Layout | None:
    """The layout whose stages, cut as they are, forget enough to fit, or as much as helps them: cut anew, it may fit.

    None where nothing helps, or it fits already.
    """
    assert setting.memory_bytes is not None
    limit = setting.memory_bytes
    of_ranks = [holding.of_rank(staged, rank) for rank in range(staged.layout.mesh.pp_degree)]
    now = _Choice(Fraction(0), 0, staged, of_ranks, _above(limit, holding.filled(staged, of_ranks)))
    while any(now.lacking):
        choices = [choice for choice in _choices(now, limit, setting, model, holding) if choice.gain > 0]
        if not choices:
            break
        now = max(choices, key=lambda choice: (choice.gain, -choice.stage))
    return None if now.staged is staged else now.staged.layout


def _above(limit: int, held: Sequence[int]) -> list[int]:
    return [max(0, num_bytes - limit) for num_bytes in held]


def _choices(now: _Choice, limit: int, setting: Setting, model: StepModel, holding: Holding) -> Iterator[_Choice]:
    """Every stage of a rank that lacks memory, with everything more that it may forget."""
    layout = now.staged.layout
    load = load_of(layout)
    for stage, rank in enumerate(layout.stage_to_rank):
        if not now.lacking[rank]:
            continue
        for kind in more_than(layout.recomputes[stage], setting):
            tried = forgetting(now.staged, stage, kind, model)
            of_ranks = [*now.of_ranks]
            of_ranks[rank] = holding.of_rank(tried, rank)
            lacking = _above(limit, holding.filled(tried, of_ranks))
            added = load(tried.works[stage]) - load(now.staged.works[stage])
            gain = Fraction(sum(now.lacking) - sum(lacking), max(1, added))
            yield _Choice(gain, stage, tried, of_ranks, lacking)


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
