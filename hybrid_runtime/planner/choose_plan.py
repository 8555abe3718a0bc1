"""The search: every possible layout, those that cannot fit or cannot win dropped by bounds, the others replayed.

    layouts --memory bound--> --time bound--> replayed --+
                                                         +--> best --> the few best searched schedules annealed --> best
    each loser leaves one sentence: what it lacks, or how much slower it is

Nothing here looks at a clock: equal arguments give equal plans.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from hybrid_runtime.errors import PlanError
from hybrid_runtime.planner.candidates import Impossible, Space, layouts
from hybrid_runtime.planner.evaluate import Evaluated, as_run, broken_promises, evaluate, replicas_ns, update_ns
from hybrid_runtime.planner.layout import Layout, Setting, forgetting_more, in_flight
from hybrid_runtime.planner.losers import Loser, infeasible, too_large, why_not
from hybrid_runtime.planner.orders import MOST_REPLAYED, known_rows, searched
from hybrid_runtime.planner.staged import (
    Staged,
    line_and_lookup,
    line_of,
    lower_bound_ns,
    stage,
    state_of,
    weigh,
)
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.planner.work import stage_works
from hybrid_runtime.schedule.choose import is_searched
from hybrid_runtime.schedule.registry import SCHEDULES
from hybrid_runtime.schedule.rows import Rows

MOST_SEARCHED = 6_000  # actions of a step; annealing more than that takes minutes to beat the known schedules
KEPT_ROWS = 64  # of a few megabytes each
LONG = 10_000  # actions of a step that take a second to replay
_STAND_IN = "zb_v"  # whose idle time a searched schedule is guessed to have


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
    found = Found()
    tell = progress or (lambda what, part: None)
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
        _keep_if_it_fits(as_run(waiting_best.pop(0), setting, model), setting, found)
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


@dataclass(frozen=True)
class _Open:
    """A layout that may win: nothing that is known rules it out yet.

    Attributes:
        bound_ns: of a step in which nothing is idle and every rank has an equal part.
        guess_ns: the bound, longer by what the schedule idles with equal stages: an order to go through, no more.
    """

    bound_ns: int
    guess_ns: int
    layout: Layout


def _possible(
    space: Space, setting: Setting, model: StepModel, found: Found, tell: Callable[[str, float], None]
) -> list[_Open]:
    """The layouts without those that cannot fit."""
    every = list(layouts(space, setting))
    possible = []
    for number, layout in enumerate(every):
        tell("listing layouts", number / len(every))
        if isinstance(layout, Impossible):
            found.losers.append(Loser(layout.what, layout.why))
            continue
        try:
            layout, lacking = _forgetting_enough(layout, setting, model)
            one = _open(layout, setting, model)
        except PlanError as problem:
            found.losers.append(Loser(str(layout), str(problem), layout))
            continue
        if lacking > 0:
            found.losers.append(too_large(layout, int(lacking), setting, "already with equal parts"))
            continue
        possible.append(one)
    return possible


def _open(layout: Layout, setting: Setting, model: StepModel) -> _Open:
    """A layout with its bounds. One that forgets is held to its guess: a schedule with a name idles that long, but for
    stages that happen to suit it, and layouts that forget would else double the time of a search.
    """
    bound = _idle_free_ns(layout, setting, model)
    guess = _guess_ns(layout, bound)
    held = layout.recompute != setting.recomputes[0] and not is_searched(layout.schedule)
    return _Open(guess if held else bound, guess, layout)


def _forgetting_enough(layout: Layout, setting: Setting, model: StepModel) -> tuple[Layout, float]:
    """The layout that forgets no more than it must to fit, and the bytes that it lacks even so."""
    lacking = _least_bytes(layout, setting, model) - (setting.memory_bytes or math.inf)
    more = forgetting_more(layout, setting) if lacking > 0 else None
    return (layout, lacking) if more is None else _forgetting_enough(more, setting, model)


def _turn(one: _Open) -> tuple[bool, int, str]:
    """What promises most comes first; where a replay takes seconds, last, when more of them are hopeless."""
    is_long = 3 * len(one.layout.stage_to_rank) * one.layout.num_microbatches > LONG
    return is_long, one.guess_ns, str(one.layout)


def _idle_free_ns(layout: Layout, setting: Setting, model: StepModel) -> int:
    """A step in which every rank has an equal part of everything and never waits: none is shorter."""
    total, ranks = line_of(layout, model).total, layout.mesh.pp_degree
    whole, apart = total.fused_load + total.tp_backward, total.split_load + total.tp_input_grad
    busy = total.tp_forward + (whole if layout.is_fused else min(whole, apart))
    mine = total.parameters // ranks
    after = replicas_ns(mine, layout, setting, model) + update_ns(mine, layout, setting, model)
    return layout.num_microbatches * busy // ranks + (after if setting.workload == "train" else 0) + model.step_ns


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
        )
        if key not in self._known:
            self._known[key] = stage(layout, self._setting, self._model)
        return replace(self._known[key], layout=layout)


def _least_bytes(layout: Layout, setting: Setting, model: StepModel) -> int:
    """What the fullest rank holds at least: the mean of parameters, and of the activations in flight, less 5 %."""
    total, ranks = line_of(layout, model).total, layout.mesh.pp_degree
    head = line_of(layout, model).units[-1].whole.saved
    held = sum(in_flight(layout, rank) for rank in range(ranks)) / ranks * 19 / 20
    return (state_of(layout, setting, model).held(total.parameters) + int(max(1, held) * (total.saved - head))) // ranks


def _guess_ns(layout: Layout, bound_ns: int) -> int:
    ranks = layout.mesh.pp_degree
    if ranks == 1:
        return bound_ns
    schedule = SCHEDULES[_STAND_IN if is_searched(layout.schedule) else layout.schedule]
    form = schedule.forms.get("train", schedule.forms["forward"])
    idle = form.idle(ranks, layout.virtual_stages or schedule.virtual_stages)
    return int(bound_ns * (1 + idle / layout.num_microbatches))


class _Replays:
    """Replays what may be among the best, the one that promises most first; what does not fit comes back forgetting
    more, where that is allowed.

    Attributes:
        waiting: layouts whose schedule is still to be searched, with their bounds.
    """

    def __init__(self, setting: Setting, model: StepModel, found: Found, keep: int) -> None:
        self._setting, self._model, self._found, self._keep = setting, model, found, keep
        self._best: list[int] = []  # the negated step times of the best `keep`, a heap
        self._cuts = _Cuts(setting, model)
        self._rows: dict[tuple[object, ...], Rows] = {}
        self.waiting: list[tuple[int, Layout]] = []

    def all_of(self, possible: Sequence[_Open], tell: Callable[[str, float], None]) -> list[tuple[int, Layout]]:
        """Goes through the layouts; returns `waiting`, the lowest bound first."""
        left = [(_turn(one), one) for one in possible]
        heapq.heapify(left)
        count = 0
        while left:
            _, one = heapq.heappop(left)
            tell("replaying", count / (count + len(left) + 1))
            count += 1
            more = self._instead(one)
            if more is not None:
                again = _open(more, self._setting, self._model)
                heapq.heappush(left, (_turn(again), again))
        self.waiting.sort(key=lambda pair: (pair[0], str(pair[1])))
        return self.waiting

    def _instead(self, one: _Open) -> Layout | None:
        """None for a layout that fits, waits or cannot win, and where nothing fits; else the one that forgets more."""
        layout, setting, model, found = one.layout, self._setting, self._model, self._found
        reached_ns = -self._best[0] if len(self._best) == self._keep else None
        if _hopeless(layout, one.bound_ns, reached_ns, found):
            return None
        try:
            staged = self._cuts.of(layout)
        except PlanError as problem:
            found.losers.append(Loser(str(layout), str(problem), layout))
            return forgetting_more(layout, setting)
        bound_ns = max(one.bound_ns, lower_bound_ns(staged, setting, model) + model.step_ns)
        if _hopeless(layout, bound_ns, reached_ns, found):
            return None
        lacking = _expected_lack(staged, setting, model)
        if lacking > 0 and not _may_fit_whole(layout, staged, setting, model):
            found.losers.append(too_large(layout, lacking, setting, "what the schedule holds with equal stages"))
            return _fitting(staged, setting, model)
        if is_searched(layout.schedule):
            self._wait(layout, bound_ns, 3 * len(staged.works) * layout.num_microbatches)
            return None
        done = _within_memory(layout, setting, model, self._rows_of(layout), staged, found)
        if done is not None and not broken_promises(done, setting):
            heapq.heappush(self._best, -done.step_ns)
            if len(self._best) > self._keep:
                heapq.heappop(self._best)
        return forgetting_more(layout, setting) if done is None else None

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


def _expected_lack(staged: Staged, setting: Setting, model: StepModel) -> int:
    """Bytes by which a rank will surely exceed its memory: 95 % of what its schedule holds with equal stages."""
    if setting.memory_bytes is None:
        return 0
    return max(_expected(staged, setting, model)) * 19 // 20 - setting.memory_bytes


def _fitting(staged: Staged, setting: Setting, model: StepModel) -> Layout | None:
    """The first layout that forgets more and would fit if it were cut alike; None if there is none."""
    more: Layout | None = forgetting_more(staged.layout, setting)
    while more is not None:
        line, _ = line_and_lookup(more, model)
        works = tuple(stage_works(line, staged.boundaries))
        if _expected_lack(replace(staged, layout=more, line=line, works=works), setting, model) <= 0:
            return more
        more = forgetting_more(more, setting)
    return None


def _may_fit_whole(layout: Layout, staged: Staged, setting: Setting, model: StepModel) -> bool:
    """Whether cuts that know the memory may help: 1F1B's ranks hold unequally many microbatches, together with room."""
    if setting.memory_bytes is None or layout.cuts != "fractional" or layout.schedule != "1f1b":
        return False
    expected = _expected(staged, setting, model)
    return sum(expected) * 19 // 20 <= setting.memory_bytes * len(expected)


def _expected(staged: Staged, setting: Setting, model: StepModel) -> list[int]:
    """What every rank holds by its schedule's figures, before any replay."""
    state = state_of(staged.layout, setting, model)
    return [
        weigh(staged.line, staged.layout, state, rank, staged.rank_work(rank), staged.tied_parameters)
        for rank in range(staged.layout.mesh.pp_degree)
    ]


def _hopeless(layout: Layout, bound_ns: int, reached_ns: int | None, found: Found) -> bool:
    """Whether a layout cannot be among the best, whatever its schedule; then it says why."""
    if reached_ns is None or bound_ns < reached_ns:
        return False
    why = f"cannot take less than {bound_ns / 1e6:.4g} ms, and {reached_ns / 1e6:.4g} ms is reached"
    found.losers.append(Loser(str(layout), why, layout, bound_ns))
    return True


def _within_memory(
    layout: Layout,
    setting: Setting,
    model: StepModel,
    rows: Rows,
    staged: Staged | None,
    found: Found,
) -> Evaluated | None:
    """A layout replayed, if it fits; where fractional cuts do not, cuts between units that know the memory may."""
    try:
        done = evaluate(layout, setting, model, rows, staged)
    except PlanError as problem:
        found.losers.append(Loser(str(layout), str(problem), layout))
        return None
    found.replayed += 1
    lacking = done.peak_bytes - (setting.memory_bytes or math.inf)
    if lacking > 0 and _may_fit_whole(layout, done.staged, setting, model):
        return _within_memory(replace(layout, cuts="whole"), setting, model, rows, None, found)
    return _keep_if_it_fits(done, setting, found)


def _keep_if_it_fits(done: Evaluated, setting: Setting, found: Found) -> Evaluated | None:
    lacking = done.peak_bytes - (setting.memory_bytes or math.inf)
    if lacking <= 0:
        found.best.append(done)
        return done
    fullest = max(range(len(done.memory)), key=lambda rank: done.memory[rank].ledger_peak)
    found.losers.append(
        replace(too_large(done.layout, int(lacking), setting, f"pp rank {fullest}"), peak_bytes=done.peak_bytes)
    )
    return None


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
        fits = None
        while tried is not None and fits is None:
            try:
                rows = searched(tried, setting, model, most_replayed // len(waiting), done)
                fits = _within_memory(tried, setting, model, rows, None, found)
            except PlanError as problem:
                found.losers.append(Loser(str(tried), str(problem), tried))
            tried = forgetting_more(tried, setting)
