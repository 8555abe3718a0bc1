"""Schedules by name, with the closed forms that can be judged before anything runs.

To add a schedule: write one pure function `(pp_degree, num_microbatches) -> tuple[ActionList, ...]`, add one entry to
`SCHEDULES`, draw it in one test.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import ActionList
from hybrid_runtime.schedule.forward_only import forward_only
from hybrid_runtime.schedule.gpipe import gpipe
from hybrid_runtime.schedule.one_f_one_b import one_f_one_b
from hybrid_runtime.schedule.placement import linear


class Form(NamedTuple):
    """A schedule for one workload.

    Attributes:
        lists: (pp_degree, num_microbatches) -> the compute list of every pipeline rank.
        idle: pp_degree -> idle time of a rank in one step, in units of a rank's work on one microbatch, for equal
            stages and free communication.
    """

    lists: Callable[[int, int], tuple[ActionList, ...]]
    idle: Callable[[int], Fraction]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A named schedule.

    Attributes:
        place: pp_degree -> stage_to_rank.
        forms: by workload, "train" and "forward".
    """

    place: Callable[[int], tuple[int, ...]]
    forms: Mapping[str, Form]


def _fill_and_drain(pp_degree: int) -> Fraction:
    return Fraction(pp_degree - 1)


_FORWARD = Form(forward_only, _fill_and_drain)

SCHEDULES: Mapping[str, Schedule] = {
    "gpipe": Schedule(linear, {"train": Form(gpipe, _fill_and_drain), "forward": _FORWARD}),
    "1f1b": Schedule(linear, {"train": Form(one_f_one_b, _fill_and_drain), "forward": _FORWARD}),
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
    raise PlanError(f"pipeline.schedule = {name!r}: no such schedule; {hint}known are {', '.join(SCHEDULES)}")


def generate(name: str, pp_degree: int, num_microbatches: int, workload: str) -> tuple[ActionList, ...]:
    """The compute lists of every pipeline rank, F and B (or F only for workload "forward"), without communication.

    Raises:
        PlanError: unknown schedule, or fewer than one rank or microbatch.
    """
    form = find_schedule(name).forms[workload]
    _at_least_one(pp_degree, num_microbatches)
    return form.lists(pp_degree, num_microbatches)


def ideal_busy(name: str, pp_degree: int, num_microbatches: int, workload: str) -> Fraction:
    """Largest possible compute-busy share of a rank: work / (work + idle), for equal stages and free communication.

    Raises:
        PlanError: unknown schedule, or fewer than one rank or microbatch.
    """
    idle = find_schedule(name).forms[workload].idle(pp_degree)
    _at_least_one(pp_degree, num_microbatches)
    return num_microbatches / (num_microbatches + idle)


def least_microbatches(name: str, pp_degree: int, busy: Fraction, workload: str) -> int:
    """The fewest microbatches with which `ideal_busy` is at least `busy` (a share of 1).

    Raises:
        PlanError: unknown schedule, or a share that no number of microbatches reaches.
    """
    idle = find_schedule(name).forms[workload].idle(pp_degree)
    if idle == 0 and busy <= 1:
        return 1
    if busy >= 1:
        raise PlanError(
            f"a compute-busy share of {float(busy):.1%} cannot be reached by {name} on {pp_degree} pipeline ranks: "
            "each idles while the pipeline fills and drains; ask for less than 100 %"
        )
    return max(1, math.ceil(busy * idle / (1 - busy)))


def _at_least_one(pp_degree: int, num_microbatches: int) -> None:
    if pp_degree < 1 or num_microbatches < 1:
        raise PlanError(
            f"a schedule needs at least 1 pipeline rank and 1 microbatch, not {pp_degree} and {num_microbatches}"
        )
