"""What is known of a layout before it is cut: what its step takes at least (for some an estimate, and said to be one),
what a rank holds at least, and a guess at the order in which to go through layouts.

    time |  o                 a layout that must forget to fit: at least the time on this line between what everything
         |    \\               forgotten alike costs and saves, at the memory that there is
         |      o
         |         ` o
         |_______:________
               memory  bytes
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from itertools import combinations

from hybrid_runtime.errors import PlanError
from hybrid_runtime.planner.layout import Layout, Setting, in_flight, may_share
from hybrid_runtime.planner.replicas import least_after_ns
from hybrid_runtime.planner.staged import lines_of, state_of
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.planner.who_forgets import more_than
from hybrid_runtime.planner.work import Work, plus
from hybrid_runtime.schedule.choose import is_searched
from hybrid_runtime.schedule.registry import SCHEDULES

LONG = 10_000  # actions of a step that take a second to replay
_STAND_IN = "zb_v"  # whose idle time a searched schedule is guessed to have


@dataclass(frozen=True)
class Open:
    """A layout that may win: nothing that is known rules it out yet.

    Attributes:
        bound_ns: what it is held to: a step in which nothing is idle and every rank has an equal part; or the guess.
        guess_ns: longer than such a step by what the schedule idles with equal stages: an order to go through.
        estimated: a step may be a little shorter than `bound_ns`.
    """

    bound_ns: int
    guess_ns: int
    layout: Layout
    estimated: bool

    @property
    def turn(self) -> tuple[bool, int, str]:
        """What promises most comes first; where a replay takes seconds, last, when more of them are hopeless."""
        is_long = 3 * len(self.layout.stage_to_rank) * self.layout.num_microbatches > LONG
        return is_long, self.guess_ns, str(self.layout)


def opened(layout: Layout, setting: Setting, model: StepModel) -> Open:
    """A layout with its bounds. One that forgets is held to its guess: a schedule with a name idles that long, but for
    stages that happen to suit it, and layouts that forget would else double the time of a search.

    Raises:
        PlanError: nothing is known of its costs.
    """
    free = idle_free_ns(layout, setting, model)
    bound = free + _forced_ns(layout, setting, model)
    guess = _guess_ns(layout, bound)
    forgets = bound > free or set(layout.recomputes) != {"none"}
    held = bool(setting.recomputes) and forgets and not is_searched(layout.schedule)
    summed = setting.workload == "train" and layout.mesh.dp_degree > 1
    several = len(layout.stage_to_rank) > layout.mesh.pp_degree  # on a rank: the last one's sum may be shorter
    return Open(guess if held else bound, guess, layout, held or (summed and several))


def lacking_bytes(layout: Layout, setting: Setting, model: StepModel) -> int:
    """What is lacking even with equal parts, and everything forgotten and shared that may be; 0 for nothing."""
    if setting.memory_bytes is None:
        return 0
    kinds = setting.recomputes[-1:]
    least = replace(layout, recompute=kinds[0]) if kinds else layout
    shared = may_share(layout, setting)
    return max(
        0, _least_bytes(replace(least, shard_optimizer=shared or least.shard_optimizer), model) - setting.memory_bytes
    )


def sharing_first(layout: Layout, setting: Setting, model: StepModel) -> Layout:
    """The layout whose replicas share the optimizer's state, if they may and are no slower for it by what is known."""
    if not may_share(layout, setting):
        return layout
    shared = replace(layout, shard_optimizer=True)
    try:
        faster = idle_free_ns(shared, setting, model) <= idle_free_ns(layout, setting, model)
    except PlanError:  # nothing is known of scattering or gathering so much
        return layout
    return shared if faster else layout


def idle_free_ns(layout: Layout, setting: Setting, model: StepModel) -> int:
    """A step in which every rank, and each of its stages, has an equal part of everything and never waits."""
    total, ranks = _total(layout, model), layout.mesh.pp_degree
    whole, apart = total.fused_load + total.tp_backward, total.split_load + total.tp_input_grad
    busy = total.tp_forward + (whole if layout.is_fused else min(whole, apart))
    after = least_after_ns(total.parameters // ranks, layout, setting, model) if setting.workload == "train" else 0
    return layout.num_microbatches * busy // ranks + after + model.step_ns


def _total(layout: Layout, model: StepModel) -> Work:
    """All units; where stages forget differently, the mean of what each of them would make of the whole."""
    lines = lines_of(layout, model)
    if all(line is lines[0] for line in lines):
        return lines[0].total
    summed = reduce(plus, (line.total for line in lines))
    return Work._make(figure // len(lines) for figure in summed)


def _least_bytes(layout: Layout, model: StepModel) -> int:
    """What the fullest rank holds at least: the mean of parameters, and of the activations in flight, less 5 %."""
    total, ranks = _total(layout, model), layout.mesh.pp_degree
    head = lines_of(layout, model)[0].units[-1].whole.saved
    held = max(Fraction(1), _mean_in_flight(layout) * 19 / 20)
    return (state_of(layout, model).held(total.parameters) + int(held * (total.saved - head))) // ranks


def _mean_in_flight(layout: Layout) -> Fraction:
    ranks = layout.mesh.pp_degree
    return sum((in_flight(layout, rank) for rank in range(ranks)), Fraction(0)) / ranks


def _forced_ns(layout: Layout, setting: Setting, model: StepModel) -> int:
    """How much longer a step takes at least because stages must forget. Ranks that hold more microbatches than others
    free more for the same time, so forgetting on them alone may cost that much less.
    """
    if setting.memory_bytes is None or len(set(layout.recomputes)) > 1:
        return 0
    first = layout.recomputes[0]
    lacks = _least_bytes(layout, model) > setting.memory_bytes
    if not lacks or not (more := more_than(first, setting)):
        return 0
    kinds = [replace(layout, recompute=kind) for kind in (first, *more)]
    points = [(_least_bytes(one, model), idle_free_ns(one, setting, model)) for one in kinds]
    longest = _lowest_at(setting.memory_bytes, points) - points[0][1]
    most = max((in_flight(layout, rank) for rank in range(layout.mesh.pp_degree)), default=Fraction(1))
    return max(0, int(longest * _mean_in_flight(layout) / most))


def _lowest_at(memory_bytes: int, points: list[tuple[int, int]]) -> Fraction:
    """The least time at which a mixture of points (bytes, time) needs no more than the memory; their last one's where
    none does: then replicas share what they hold, or nothing fits."""
    found = [Fraction(time) for num_bytes, time in points if num_bytes <= memory_bytes]
    for (large, short), (small, long) in combinations(points, 2):
        if small <= memory_bytes < large:
            found.append(short + Fraction((long - short) * (large - memory_bytes), large - small))
    return min(found, default=Fraction(points[-1][1]))


def _guess_ns(layout: Layout, bound_ns: int) -> int:
    ranks = layout.mesh.pp_degree
    if ranks == 1:
        return bound_ns
    schedule = SCHEDULES[_STAND_IN if is_searched(layout.schedule) else layout.schedule]
    form = schedule.forms.get("train", schedule.forms["forward"])
    idle = form.idle(ranks, layout.virtual_stages or schedule.virtual_stages)
    return int(bound_ns * (1 + idle / layout.num_microbatches))
