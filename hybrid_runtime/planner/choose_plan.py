"""The search: every possible layout, those that cannot fit or cannot win dropped by bounds, the others replayed.

    layouts --memory bound--> --time bound--> replayed --+
                 ^                                       +--> best --> the few best searched schedules annealed --> best
                 +--- stages that forget more, replicas that share more, where it does not fit

    each loser leaves one sentence: what it lacks, or how much slower it is

Nothing here looks at a clock: equal arguments give equal plans.
"""

from __future__ import annotations

import gc
import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction

from hybrid_runtime.errors import PlanError
from hybrid_runtime.planner.bounds import Open, lacking_bytes, opened, sharing_first
from hybrid_runtime.planner.candidates import Impossible, Space, layouts
from hybrid_runtime.planner.evaluate import Evaluated, broken_promises, evaluate
from hybrid_runtime.planner.layout import Layout, Setting, may_share
from hybrid_runtime.planner.losers import Loser, infeasible, too_large, why_not
from hybrid_runtime.planner.orders import MOST_REPLAYED, known_rows, searched
from hybrid_runtime.planner.settled import settled
from hybrid_runtime.planner.stage_costs import lower_bound_ns
from hybrid_runtime.planner.staged import Staged, stage
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.planner.who_forgets import (
    ByFigures,
    ByOrder,
    all_forgetting_more,
    forgetting_enough,
    held_by_rank,
    may_fit,
)
from hybrid_runtime.schedule.choose import is_searched
from hybrid_runtime.schedule.rows import Rows

MOST_SEARCHED = 6_000  # actions of a step; annealing more than that takes minutes to beat the known schedules
KEPT_ROWS = 64  # of a few megabytes each


@dataclass
class Found:
    """What a search came to.

    Attributes:
        best: the chosen layout and the next best, shortest step first.
        losers: all others, in the order in which they dropped out.
        replayed: how many layouts were replayed.
    """

    best: list[Evaluated] = field(default_factory=list)
    losers: list[Loser] = field(default_factory=list)
    replayed: int = 0


def choose(
    space: Space,
    setting: Setting,
    model: StepModel,
    *,
    keep: int = 5,
    annealed: int = 3,
    most_replayed: int = MOST_REPLAYED,
    progress: Callable[[str, float], None] | None = None,
) -> Found:
    """Searches the space.

    Args:
        keep: how many of the best to return.
        annealed: for how many of the best searched layouts a schedule is really searched.
        progress: is told what is being done, and which part of it is.

    Raises:
        PlanError: no layout is possible, or none fits the memory; says which limit, by how much, what would help.
    """
    with _not_collecting():
        return _chosen(space, setting, model, keep, annealed, most_replayed, progress or (lambda what, part: None))


@contextmanager
def _not_collecting() -> Iterator[None]:
    """A search makes millions of tuples and no cycles; the collector would walk them again and again, for a tenth of
    the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _chosen(
    space: Space,
    setting: Setting,
    model: StepModel,
    keep: int,
    annealed: int,
    most_replayed: int,
    tell: Callable[[str, float], None],
) -> Found:
    found = Found()
    possible = _possible(space, setting, model, found, tell)
    waiting = _Replays(setting, model, found, keep).all_of(possible, tell)
    _anneal(waiting[:annealed], setting, model, found, most_replayed, tell)
    found.losers += [
        Loser(str(layout), f"not searched: {annealed} other searched layouts have lower bounds", layout)
        for _, layout in waiting[annealed:]
    ]
    waiting_best = sorted(found.best, key=_order(setting))
    found.best = []
    while waiting_best and len(found.best) < keep:
        run, others = settled(waiting_best.pop(0), setting, model, beside_another=bool(found.best))
        found.losers += others
        _keep_if_it_fits(run, setting, found)
    if not found.best:
        raise PlanError(infeasible(found.losers, setting))
    found.best.sort(key=_order(setting))
    found.losers += [_beaten(other, found.best[0], setting) for other in waiting_best]
    return found


def _order(setting: Setting) -> Callable[[Evaluated], tuple[int, int, int, str]]:
    """The best first: promises kept, then the shortest step."""
    return lambda one: (len(broken_promises(one, setting)), one.step_ns, one.peak_bytes, str(one.layout))


def _beaten(other: Evaluated, chosen: Evaluated, setting: Setting) -> Loser:
    why = why_not(other, chosen, setting)
    return Loser(str(other.layout), why, other.layout, other.step_ns, other.peak_bytes)


def _possible(
    space: Space, setting: Setting, model: StepModel, found: Found, tell: Callable[[str, float], None]
) -> list[Open]:
    """The layouts without those that cannot fit."""
    every = list(layouts(space, setting))
    possible = []
    for number, layout in enumerate(every):
        tell("listing layouts", number / len(every))
        if isinstance(layout, Impossible):
            found.losers.append(Loser(layout.what, layout.why))
            continue
        try:
            lacking = lacking_bytes(layout, setting, model)
            one = opened(sharing_first(layout, setting, model), setting, model)
        except PlanError as problem:
            found.losers.append(Loser(str(layout), str(problem), layout))
            continue
        if lacking > 0:
            found.losers.append(too_large(layout, lacking, setting, f"{_helped(setting)}already with equal parts"))
            continue
        possible.append(one)
    return possible


def _helped(setting: Setting) -> str:
    return "with everything forgotten, " if setting.recomputes else ""


class _Cuts:
    """Stages by everything that decides them: schedules of one placement share their cuts."""

    def __init__(self, setting: Setting, model: StepModel) -> None:
        self._setting = setting
        self._model = model
        self._known: dict[tuple[object, ...], Staged] = {}

    def of(self, layout: Layout) -> Staged:
        """The layout's stages.

        Raises:
            PlanError: as `stage`.
        """
        limited = layout.schedule if layout.cuts == "whole" or layout.is_v else ""
        key = (
            layout.mesh,
            layout.microbatch_size,
            layout.stage_to_rank,
            layout.is_fused,
            layout.share,
            layout.cuts,
            layout.sharded,
            limited,
            layout.in_flight,
            layout.recompute,
            layout.shard_optimizer,
        )
        if key not in self._known:
            self._known[key] = stage(layout, self._setting, self._model)
        return replace(self._known[key], layout=layout)


class _Replays:
    """Replays what may be among the best, the one that promises most first; what does not fit comes back forgetting
    more, or sharing more, where that is allowed.

    Attributes:
        waiting: layouts whose schedule is still to be searched, with their bounds.
    """

    def __init__(self, setting: Setting, model: StepModel, found: Found, keep: int) -> None:
        self._setting, self._model, self._found, self._keep = setting, model, found, keep
        self._best: list[int] = []  # the negated step times of the best `keep`, a heap
        self._cuts = _Cuts(setting, model)
        self._rows: dict[tuple[object, ...], Rows] = {}
        self.waiting: list[tuple[int, Layout]] = []

    def all_of(self, possible: Sequence[Open], tell: Callable[[str, float], None]) -> list[tuple[int, Layout]]:
        """Goes through the layouts; returns `waiting`, the lowest bound first."""
        left = [(one.turn, one) for one in possible]
        heapq.heapify(left)
        seen = {one.layout for one in possible}
        count = 0
        while left:
            _, one = heapq.heappop(left)
            tell("replaying", count / (count + len(left) + 1))
            count += 1
            for more in self._instead(one):
                if more not in seen:
                    seen.add(more)
                    try:
                        again = opened(more, self._setting, self._model)
                    except PlanError as problem:
                        self._found.losers.append(Loser(str(more), str(problem), more))
                        continue
                    heapq.heappush(left, (again.turn, again))
        self.waiting.sort(key=lambda pair: (pair[0], str(pair[1])))
        return self.waiting

    def _instead(self, one: Open) -> Iterator[Layout]:
        """Nothing for a layout that fits, waits or cannot win; else what may fit in its place."""
        layout, setting, model, found = one.layout, self._setting, self._model, self._found
        reached_ns = -self._best[0] if len(self._best) == self._keep else None
        if _hopeless(one, reached_ns, found):
            return
        try:
            staged = self._cuts.of(layout)
        except PlanError as problem:
            found.losers.append(Loser(str(layout), str(problem), layout))
            yield from _in_place_of_none(layout, setting, model)
            return
        bound_ns = lower_bound_ns(staged, setting, model) + model.step_ns
        if _hopeless(replace(one, bound_ns=bound_ns, estimated=False), reached_ns, found):
            return
        bound_ns = max(one.bound_ns, bound_ns)
        figures = ByFigures(model)
        lacking = _most_lacking(held_by_rank(staged, figures), setting)
        if lacking > 0 and not _may_fit_whole(staged, setting, model):
            found.losers.append(too_large(layout, lacking, setting, "what the schedule holds with equal stages"))
            yield from _in_place_of(staged, setting, model, figures)
            return
        if is_searched(layout.schedule):
            self._wait(layout, bound_ns, 3 * len(staged.works) * layout.num_microbatches)
            return
        order = self._rows_of(layout)
        done = _within_memory(staged, setting, model, order, found)
        if done is not None and not broken_promises(done, setting):
            heapq.heappush(self._best, -done.step_ns)
            if len(self._best) > self._keep:
                heapq.heappop(self._best)
        if done is None or done.layout.cuts != layout.cuts:
            yield from _in_place_of(staged, setting, model, ByOrder(order, setting, model))

    def _rows_of(self, layout: Layout) -> Rows:
        """The order of a schedule; kept, for a layout that forgets more has the same."""
        key = layout.schedule, layout.mesh.pp_degree, layout.num_microbatches, layout.virtual_stages
        if key not in self._rows:
            if len(self._rows) == KEPT_ROWS:
                del self._rows[next(iter(self._rows))]
            self._rows[key] = known_rows(layout, self._setting)
        return self._rows[key]

    def _wait(self, layout: Layout, bound_ns: int, actions: int) -> None:
        if actions <= MOST_SEARCHED:
            self.waiting.append((bound_ns, layout))
            return
        why = f"not searched: {actions} actions are more than the {MOST_SEARCHED} that a search improves"
        self._found.losers.append(Loser(str(layout), why, layout))


def _in_place_of(staged: Staged, setting: Setting, model: StepModel, holding: ByFigures | ByOrder) -> Iterator[Layout]:
    """What may fit where a layout does not: replicas that share the optimizer's state, stages that forget more."""
    if setting.memory_bytes is None:
        return
    layout = staged.layout
    if may_share(layout, setting) and not layout.shard_optimizer:
        yield replace(layout, shard_optimizer=True)
    more = forgetting_enough(staged, setting, model, holding) or all_forgetting_more(layout, setting)
    if more is not None:
        yield more


def _in_place_of_none(layout: Layout, setting: Setting, model: StepModel) -> Iterator[Layout]:
    """The same of a layout that no cut fits: by the stages that it would have with memory enough."""
    try:
        staged = stage(layout, replace(setting, memory_bytes=None), model)
        yield from _in_place_of(staged, setting, model, ByFigures(model, Fraction(1)))
    except PlanError:
        return  # that was not for memory, and has been said


def _most_lacking(held: Sequence[int], setting: Setting) -> int:
    """Bytes by which the fullest rank exceeds its memory; 0 or less where it does not."""
    return 0 if setting.memory_bytes is None else max(held) - setting.memory_bytes


def _may_fit_whole(staged: Staged, setting: Setting, model: StepModel) -> bool:
    """Whether cuts that know the memory may help: 1F1B's ranks hold unequally many microbatches, together with room."""
    layout = staged.layout
    if setting.memory_bytes is None or layout.cuts != "fractional" or layout.schedule != "1f1b":
        return False
    held = held_by_rank(staged, ByFigures(model))
    return sum(held) <= setting.memory_bytes * len(held)


def _hopeless(one: Open, reached_ns: int | None, found: Found) -> bool:
    """Whether by what it is held to a layout is not among the best, whatever its schedule; then it says why."""
    if reached_ns is None or one.bound_ns < reached_ns:
        return False
    how = "is not expected to" if one.estimated else "cannot"
    why = f"{how} take less than {one.bound_ns / 1e6:.4g} ms, and {reached_ns / 1e6:.4g} ms is reached"
    found.losers.append(Loser(str(one.layout), why, one.layout, one.bound_ns))
    return True


def _within_memory(staged: Staged, setting: Setting, model: StepModel, order: Rows, found: Found) -> Evaluated | None:
    """A layout replayed, if it fits; where fractional cuts do not, cuts between units that know the memory may."""
    layout = staged.layout
    try:
        held = held_by_rank(staged, ByOrder(order, setting, model))
        if may_fit(held, setting):
            done = evaluate(layout, setting, model, order, staged)
            found.replayed += 1
            held = [memory.ledger_peak for memory in done.memory]
            if _most_lacking(held, setting) <= 0:
                found.best.append(done)
                return done
        if _may_fit_whole(staged, setting, model):
            whole = stage(replace(layout, cuts="whole"), setting, model)
            return _within_memory(whole, setting, model, order, found)
    except PlanError as problem:
        found.losers.append(Loser(str(layout), str(problem), layout))
        return None
    found.losers.append(_does_not_fit(layout, held, setting))
    return None


def _keep_if_it_fits(done: Evaluated, setting: Setting, found: Found) -> None:
    held = [memory.ledger_peak for memory in done.memory]
    if _most_lacking(held, setting) <= 0:
        found.best.append(done)
    else:
        found.losers.append(_does_not_fit(done.layout, held, setting))


def _does_not_fit(layout: Layout, held: Sequence[int], setting: Setting) -> Loser:
    fullest = max(range(len(held)), key=lambda rank: held[rank])
    loser = too_large(layout, _most_lacking(held, setting), setting, f"pp rank {fullest}")
    return replace(loser, peak_bytes=max(held))


def _anneal(
    waiting: Sequence[tuple[int, Layout]],
    setting: Setting,
    model: StepModel,
    found: Found,
    most_replayed: int,
    tell: Callable[[str, float], None],
) -> None:
    """Searches the schedules of the most promising V layouts."""
    for number, (_, layout) in enumerate(waiting):
        begun = number / len(waiting)

        def done(part: float, begun: float = begun) -> None:
            tell("searching schedules", begun + part / len(waiting))

        tried: Layout | None = layout
        while tried is not None:
            try:
                rows = searched(tried, setting, model, most_replayed // len(waiting), done)
                staged = stage(tried, setting, model)
            except PlanError as problem:
                found.losers.append(Loser(str(tried), str(problem), tried))
                tried = all_forgetting_more(tried, setting)
                continue
            if _within_memory(staged, setting, model, rows, found) is not None or setting.memory_bytes is None:
                break
            tried = forgetting_enough(staged, setting, model, ByOrder(rows, setting, model)) or all_forgetting_more(
                tried, setting
            )
