"""Schedules by name: where their stages live, their lists, and how long a rank must idle.

    placement  stages per rank   schedules
    linear     1                 gpipe, 1f1b, zb_h1, zb_h2
    loop       any, 2 by default interleaved_1f1b, interleaved_zb
    V          2                 zb_v, dualpipe_v, v_half, v_min

To add a schedule: write one pure function `(pp_degree, num_microbatches) -> lists of all ranks`, add one entry to
`SCHEDULES`, draw it in one test.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import ActionList, CellList, flatten
from hybrid_runtime.schedule.dualpipe_v import demand_two_per_rank, dualpipe_v
from hybrid_runtime.schedule.forward_only import forward_only, forward_only_loop, forward_only_v
from hybrid_runtime.schedule.gpipe import gpipe
from hybrid_runtime.schedule.interleaved_1f1b import interleaved_1f1b, round_size
from hybrid_runtime.schedule.interleaved_zb import interleaved_zb
from hybrid_runtime.schedule.one_f_one_b import one_f_one_b
from hybrid_runtime.schedule.placement import linear, loop, v_shape
from hybrid_runtime.schedule.v_half import v_half
from hybrid_runtime.schedule.v_min import v_min
from hybrid_runtime.schedule.zb_h1 import zb_h1
from hybrid_runtime.schedule.zb_h2 import zb_h2
from hybrid_runtime.schedule.zb_v import zb_v


class Form(NamedTuple):
    """A schedule for one workload.

    Attributes:
        lists: (pp_degree, num_microbatches, virtual_stages) -> the compute list of every pipeline rank.
        idle: (pp_degree, virtual_stages) -> idle time of a rank in one step, in units of a rank's work on one
            microbatch, for equal stages, F = I = W and free communication.
        exact_from: pp_degree -> from how many microbatches on `idle` is exact; fewer idle longer, and are replayed.
        demand: (pp_degree, num_microbatches) -> nothing; raises PlanError if the schedule does not accept the number.
    """

    lists: Callable[[int, int, int], Sequence[CellList]]
    idle: Callable[[int, int], Fraction]
    exact_from: Callable[[int], int]
    demand: Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A named schedule.

    Attributes:
        placement: (pp_degree, virtual_stages) -> stage_to_rank.
        virtual_stages: stages per rank where nothing else is asked for.
        any_virtual_stages: whether another number may be asked for.
        forms: by workload, "train" and "forward".
    """

    placement: Callable[[int, int], tuple[int, ...]]
    virtual_stages: int
    any_virtual_stages: bool
    forms: Mapping[str, Form]

    def place(self, pp_degree: int, virtual_stages: int | None = None) -> tuple[int, ...]:
        """The pipeline rank of every stage; None for the schedule's own number of stages per rank."""
        return self.placement(pp_degree, virtual_stages or self.virtual_stages)


def _fixed(lists: Callable[[int, int], Sequence[CellList]]) -> Callable[[int, int, int], Sequence[CellList]]:
    """A generator for a fixed number of stages per rank, in the signature of those that take any."""
    return lambda pp_degree, num_microbatches, virtual_stages: lists(pp_degree, num_microbatches)


def _thirds(number: int) -> Callable[[int, int], Fraction]:
    """Idle for so many of F, I and W of one stage per further rank."""
    return lambda pp_degree, virtual_stages: Fraction(number * (pp_degree - 1), 3 * virtual_stages)


def _fill_and_drain(pp_degree: int, virtual_stages: int) -> Fraction:
    return Fraction(pp_degree - 1)


def _v_half_idle(pp_degree: int, virtual_stages: int) -> Fraction:
    return Fraction(7 * pp_degree - (7 if pp_degree % 2 else 4), 12)


def _v_min_idle(pp_degree: int, virtual_stages: int) -> Fraction:
    return Fraction(max(0, 4 * pp_degree - (5 if pp_degree % 3 else 3)), 6)


def _one(pp_degree: int) -> int:
    return 1


def _one_per_rank(pp_degree: int) -> int:
    return pp_degree


def _two_per_rank(pp_degree: int) -> int:
    return 2 * pp_degree


def _nothing(pp_degree: int, num_microbatches: int) -> None:
    """Every number of microbatches will do."""


def _linear(train: Form) -> Schedule:
    return Schedule(linear, 1, False, {"train": train, "forward": _FORWARD})


def _loop(train: Form) -> Schedule:
    return Schedule(loop, 2, True, {"train": train, "forward": _FORWARD_LOOP})


def _v(train: Form) -> Schedule:
    return Schedule(v_shape, 2, False, {"train": train, "forward": _FORWARD_V})


_FORWARD = Form(_fixed(forward_only), _fill_and_drain, _one, _nothing)
_FORWARD_LOOP = Form(forward_only_loop, _thirds(3), _one_per_rank, _nothing)
_FORWARD_V = Form(_fixed(forward_only_v), _fill_and_drain, _one, _nothing)

SCHEDULES: Mapping[str, Schedule] = {
    "gpipe": _linear(Form(_fixed(gpipe), _fill_and_drain, _one, _nothing)),
    "1f1b": _linear(Form(_fixed(one_f_one_b), _fill_and_drain, _one, _nothing)),
    "interleaved_1f1b": _loop(Form(interleaved_1f1b, _thirds(3), _one_per_rank, round_size)),
    "zb_h1": _linear(Form(_fixed(zb_h1), _thirds(1), _one_per_rank, _nothing)),
    "interleaved_zb": _loop(Form(interleaved_zb, _thirds(1), _one_per_rank, round_size)),
    "zb_h2": _linear(Form(_fixed(zb_h2), _thirds(1), _two_per_rank, _nothing)),
    "zb_v": _v(Form(_fixed(zb_v), _thirds(1), _two_per_rank, _nothing)),
    "dualpipe_v": _v(Form(_fixed(dualpipe_v), _thirds(1), _two_per_rank, demand_two_per_rank)),
    "v_half": _v(Form(_fixed(v_half), _v_half_idle, _one_per_rank, _nothing)),
    "v_min": _v(Form(_fixed(v_min), _v_min_idle, _one_per_rank, _nothing)),
}


def find_schedule(name: str) -> Schedule:
    """The schedule of that name.

    Raises:
        PlanError: there is none; the message names the nearest.
    """
    if name in SCHEDULES:
        return SCHEDULES[name]
    close = difflib.get_close_matches(name.lower(), SCHEDULES, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise PlanError(
        f"pipeline.schedule = {name!r}: no such schedule; {hint}known are {', '.join(SCHEDULES)}, auto, or a .csv "
        "file of action lists"
    )


def stages_per_rank(name: str, virtual_stages: int | None = None) -> int:
    """How many stages a rank has: the given number, or the schedule's own.

    Raises:
        PlanError: unknown schedule, or one that cannot have so many.
    """
    schedule = find_schedule(name)
    if virtual_stages is None or virtual_stages == schedule.virtual_stages:
        return schedule.virtual_stages
    if schedule.any_virtual_stages and virtual_stages >= 1:
        return virtual_stages
    accepted = "1 or more stages" if schedule.any_virtual_stages else f"exactly {schedule.virtual_stages}"
    raise PlanError(
        f"pipeline.virtual_stages = {virtual_stages}: {name} has {accepted} on each pipeline rank; "
        "leave virtual_stages out"
    )


def generate(
    name: str, pp_degree: int, num_microbatches: int, workload: str, virtual_stages: int | None = None
) -> tuple[ActionList, ...]:
    """The compute lists of every pipeline rank, without communication and without overlaps; F only for "forward".

    Args:
        virtual_stages: stages per rank; None for the schedule's own number.

    Raises:
        PlanError: unknown schedule, fewer than one rank or microbatch, or a number of microbatches or of stages per
            rank that the schedule does not accept.
    """
    return tuple(map(flatten, generate_cells(name, pp_degree, num_microbatches, workload, virtual_stages)))


def generate_cells(
    name: str, pp_degree: int, num_microbatches: int, workload: str, virtual_stages: int | None = None
) -> tuple[CellList, ...]:
    """As `generate`, with the overlaps of the schedule: for exchange and drawing."""
    demand(name, pp_degree, num_microbatches, workload, virtual_stages)
    per_rank = stages_per_rank(name, virtual_stages)
    return tuple(find_schedule(name).forms[workload].lists(pp_degree, num_microbatches, per_rank))


def demand(name: str, pp_degree: int, num_microbatches: int, workload: str, virtual_stages: int | None = None) -> None:
    """Whether the schedule accepts the numbers; cheap, for no list is made.

    Raises:
        PlanError: it does not; as `generate`.
    """
    stages_per_rank(name, virtual_stages)
    if pp_degree < 1 or num_microbatches < 1:
        raise PlanError(
            f"a schedule needs at least 1 pipeline rank and 1 microbatch, not {pp_degree} and {num_microbatches}"
        )
    find_schedule(name).forms[workload].demand(pp_degree, num_microbatches)
