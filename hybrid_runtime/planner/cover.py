"""Do the stages hold the model: every unit exactly once, in order, no stage empty?"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise


def stage_cover(
    stages: Sequence[Sequence[str]],
    unit_names: Sequence[str],
    num_stages: int | None = None,
    *,
    asked_by: str = "pp_degree",
) -> tuple[str, ...]:
    """What is wrong with stages, one sentence each; empty if nothing is.

    Args:
        stages: unit names per stage.
        unit_names: the model's units in order.
        num_stages: how many stages there must be; None to accept any number.
        asked_by: what makes it that number, in words (`wanted_by`).
    """
    return tuple(_findings(stages, unit_names, num_stages, asked_by))


def wanted_by(num_stages: int, pp_degree: int) -> str:
    """What makes it so many stages: "pp_degree", or "pp_degree 4 with 2 stages on each rank"."""
    per_rank, rest = divmod(num_stages, pp_degree)
    if rest:
        return f"the schedule on pp_degree {pp_degree}"
    return "pp_degree" if per_rank == 1 else f"pp_degree {pp_degree} with {per_rank} stages on each rank"


def _findings(
    stages: Sequence[Sequence[str]], unit_names: Sequence[str], num_stages: int | None, asked_by: str
) -> Iterator[str]:
    if num_stages is not None and len(stages) != num_stages:
        yield f"{len(stages)} stages are given, but {asked_by} asks for {num_stages}"
    for index, stage in enumerate(stages):
        if not stage:
            yield f"stage {index} is empty; if its range is 'first..last', the last unit must not come before the first"
    held = [name for stage in stages for name in stage]
    existing = set(unit_names)
    unknown = [name for name in dict.fromkeys(held) if name not in existing]
    for name in unknown:
        yield f"the model has no unit {name!r}{_nearest(name, unit_names)}"
    counts = Counter(held)
    for name in unit_names:
        if counts[name] > 1:
            where = [str(index) for index, stage in enumerate(stages) if name in stage]
            yield f"unit {name!r} is held {counts[name]} times (stage {' and '.join(where)}); each belongs to one stage"
    missing = [name for name in unit_names if name not in counts]
    if missing and not unknown:  # the ends of a range with an unknown name say nothing about what lies between
        yield f"{_count(missing)} on no stage: {_shown(missing)}"
    yield from _out_of_order(held, unit_names)


def _out_of_order(held: Sequence[str], unit_names: Sequence[str]) -> Iterator[str]:
    place = {name: index for index, name in enumerate(unit_names)}
    known = [name for name in dict.fromkeys(held) if name in place]
    for before, after in pairwise(known):
        if place[before] > place[after]:
            yield f"unit {after!r} comes after {before!r}, but the model runs it before"


def _nearest(name: str, unit_names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, unit_names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; its units run from {unit_names[0]!r} to {unit_names[-1]!r}"


def _count(missing: Sequence[str]) -> str:
    return "1 unit is" if len(missing) == 1 else f"{len(missing)} units are"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
