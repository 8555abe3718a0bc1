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
from hybrid_runtime.planner.evaluate import Evaluated, as_run, broken_promises, evaluate, gradient_sum_ns
from hybrid_runtime.planner.layout import Layout, Setting, in_flight
from hybrid_runtime.planner.losers import Loser, infeasible, too_large, why_not
from hybrid_runtime.planner.rows import water_level
from hybrid_runtime.planner.staged import (
    Staged,
    embedding_parameters,
    lower_bound_ns,
    stage,
    step_costs,
    weigh,
)
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.schedule.choose import is_searched
from hybrid_runtime.schedule.registry import SCHEDULES, generate
from hybrid_runtime.schedule.rows import Rows, to_rows

# Actions replayed in a round of annealing, all searched layouts of a plan together: some twenty seconds in all.
MOST_REPLAYED = 250_000_000
MOST_SEARCHED = 6_000  # actions of a step; annealing more than that takes minutes to beat the known schedules
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
    waiting = _replayed(possible, setting, model, found, keep, tell)
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
    """The layouts, the one that promises most first; those that cannot fit are dropped."""
    every = list(layouts(space, setting))
    possible = []
    for number, layout in enumerate(every):
        tell("listing layouts", number / len(every))
        if isinstance(layout, Impossible):
            found.losers.append(Loser(layout.what, layout.why))
            continue
        try:
            lacking = _least_bytes(layout, setting, model) - (setting.memory_bytes or math.inf)
            bound = _idle_free_ns(layout, setting, model)
        except PlanError as problem:
            found.losers.append(Loser(str(layout), str(problem), layout))
            continue
        if lacking > 0:
            found.losers.append(too_large(layout, int(lacking), setting, "already with equal parts"))
            continue
        possible.append(_Open(bound, _guess_ns(layout, bound), layout))
    possible.sort(key=lambda one: (_is_long(one.layout), one.guess_ns, str(one.layout)))
    return possible


def _is_long(layout: Layout) -> bool:
    """Whether a replay takes seconds: such layouts come last, when more of them are hopeless."""
    return 3 * len(layout.stage_to_rank) * layout.num_microbatches > LONG


def _idle_free_ns(layout: Layout, setting: Setting, model: StepModel) -> int:
    """A step in which every rank has an equal part of everything and never waits: none is shorter."""
    total, ranks = model.line(layout.mesh.tp_degree, layout.microbatch_size).total, layout.mesh.pp_degree
    whole, apart = total.fused_load + total.tp_backward, total.split_load + total.tp_input_grad
    busy = total.tp_forward + (whole if layout.is_fused else min(whole, apart))
    mine = total.parameters // ranks
    after = gradient_sum_ns(mine * model.state.gradient, layout, setting, model) + model.optimizer_ns(mine)
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
        )
        if key not in self._known:
            self._known[key] = stage(layout, self._setting, self._model)
        return replace(self._known[key], layout=layout)


def _least_bytes(layout: Layout, setting: Setting, model: StepModel) -> int:
    """What the fullest rank holds at least: the mean of parameters, and of the activations in flight, less 5 %."""
    total, ranks = model.line(layout.mesh.tp_degree, layout.microbatch_size).total, layout.mesh.pp_degree
    head = model.line(layout.mesh.tp_degree, layout.microbatch_size).units[-1].whole.saved
    held = sum(in_flight(layout, rank) for rank in range(ranks)) / ranks * 19 / 20
    return (model.state.total * total.parameters + int(max(1, held) * (total.saved - head))) // ranks


def _guess_ns(layout: Layout, bound_ns: int) -> int:
    ranks = layout.mesh.pp_degree
    if ranks == 1:
        return bound_ns
    schedule = SCHEDULES[_STAND_IN if is_searched(layout.schedule) else layout.schedule]
    form = schedule.forms.get("train", schedule.forms["forward"])
    idle = form.idle(ranks, layout.virtual_stages or schedule.virtual_stages)
    return int(bound_ns * (1 + idle / layout.num_microbatches))


def _replayed(
    possible: Sequence[_Open],
    setting: Setting,
    model: StepModel,
    found: Found,
    keep: int,
    tell: Callable[[str, float], None],
) -> list[tuple[int, Layout]]:
    """Replays what may be among the best; returns the layouts whose schedule is still to be searched, by bound."""
    best: list[int] = []  # the negated step times of the best `keep`, a heap
    cuts = _Cuts(setting, model)
    waiting: list[tuple[int, Layout]] = []
    for number, one in enumerate(possible):
        tell("replaying", number / len(possible))
        reached_ns = -best[0] if len(best) == keep else None
        if _hopeless(one.layout, one.bound_ns, reached_ns, found):
            continue
        try:
            staged = cuts.of(one.layout)
        except PlanError as problem:
            found.losers.append(Loser(str(one.layout), str(problem), one.layout))
            continue
        bound_ns = max(one.bound_ns, lower_bound_ns(staged, setting, model) + model.step_ns)
        if _hopeless(one.layout, bound_ns, reached_ns, found):
            continue
        lacking = _expected_lack(staged, setting, model)
        if lacking > 0 and not _may_fit_whole(one.layout, staged, setting, model):
            found.losers.append(too_large(one.layout, lacking, setting, "what the schedule holds with equal stages"))
            continue
        if is_searched(one.layout.schedule):
            actions = 3 * len(staged.works) * one.layout.num_microbatches
            if actions <= MOST_SEARCHED:
                waiting.append((bound_ns, one.layout))
            else:
                why = f"not searched: {actions} actions are more than the {MOST_SEARCHED} that a search improves"
                found.losers.append(Loser(str(one.layout), why, one.layout))
            continue
        done = _within_memory(one.layout, setting, model, known_rows(one.layout, setting), staged, found)
        if done is not None and not broken_promises(done, setting):
            heapq.heappush(best, -done.step_ns)
            if len(best) > keep:
                heapq.heappop(best)
    waiting.sort(key=lambda pair: (pair[0], str(pair[1])))
    return waiting


def _expected_lack(staged: Staged, setting: Setting, model: StepModel) -> int:
    """Bytes by which a rank will surely exceed its memory: 95 % of what its schedule holds with equal stages."""
    if setting.memory_bytes is None:
        return 0
    return max(_expected(staged, model)) * 19 // 20 - setting.memory_bytes


def _may_fit_whole(layout: Layout, staged: Staged, setting: Setting, model: StepModel) -> bool:
    """Whether cuts that know the memory may help: 1F1B's ranks hold unequally many microbatches, together with room."""
    if setting.memory_bytes is None or layout.cuts != "fractional" or layout.schedule != "1f1b":
        return False
    expected = _expected(staged, model)
    return sum(expected) * 19 // 20 <= setting.memory_bytes * len(expected)


def _expected(staged: Staged, model: StepModel) -> list[int]:
    """What every rank holds by its schedule's figures, before any replay."""
    return [
        weigh(staged.line, staged.layout, model, rank, staged.rank_work(rank), staged.tied_parameters)
        for rank in range(staged.layout.mesh.pp_degree)
    ]


def known_rows(layout: Layout, setting: Setting) -> Rows:
    """The order of a schedule that has a name.

    Raises:
        PlanError: the schedule does not accept the layout.
    """
    lists = generate(
        layout.schedule, layout.mesh.pp_degree, layout.num_microbatches, setting.workload, layout.virtual_stages
    )
    return to_rows(lists, layout.stage_to_rank)


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

        try:
            rows = searched(layout, setting, model, most_replayed // len(waiting), done)
        except PlanError as problem:
            found.losers.append(Loser(str(layout), str(problem), layout))
            continue
        _within_memory(layout, setting, model, rows, None, found)


def searched(
    layout: Layout,
    setting: Setting,
    model: StepModel,
    most_replayed: int = MOST_REPLAYED,
    progress: Callable[[float], None] | None = None,
) -> Rows:
    """The order of the shortest step that a search with a fixed amount of work finds for a layout.

    Raises:
        PlanError: no schedule holds so little, or as `stage`.
    """
    from hybrid_runtime.schedule.auto.search import search  # compiled loops: numba takes a while to import

    staged = stage(layout, setting, model)
    ranks = layout.mesh.pp_degree
    tries = max(1, most_replayed // (3 * len(staged.works) * layout.num_microbatches))
    found = search(
        ranks,
        layout.num_microbatches,
        step_costs(staged, setting, model),
        limits(staged, setting, model),
        setting.seed,
        math.inf,
        None if progress is None else lambda state: progress(state.done),
        stage_to_rank=staged.stage_to_rank,
        most_tries=tries,
    )
    return to_rows(found.lists, staged.stage_to_rank)


def limits(staged: Staged, setting: Setting, model: StepModel) -> list[int]:
    """Bytes that the actions of every rank may hold: so many microbatches of its share, the head's logits once, and
    no more than its memory leaves.
    """
    layout, state = staged.layout, model.state.total
    ranks = range(layout.mesh.pp_degree)
    states = [state * staged.rank_parameters(rank) for rank in ranks]
    held = [weigh(staged.line, layout, model, rank, staged.rank_work(rank), staged.tied_parameters) for rank in ranks]
    most = setting.memory_bytes or max(held)
    if layout.level:
        rows = state * embedding_parameters(layout, setting) if layout.sharded else 0
        most = min(most, int(water_level(held, rows)))
    return [min(here, most) - below for here, below in zip(held, states)]
