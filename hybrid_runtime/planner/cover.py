"""Do the stages hold the model: every part of every unit exactly once, in order, no stage empty?"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.pieces import read_piece
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.cuts import Stages, cut_units


class _Held(NamedTuple):
    """What a stage holds of a unit."""

    name: str
    unit: str
    start: int
    stop: int
    stage: int


def checked_stages(cuts: str | Sequence[str], costs: Sequence[UnitCost], num_stages: int, mesh: Mesh) -> Stages:
    """The stages that `pipeline.cuts` mean.

    Raises:
        PlanError: they do not hold the model, or a piece does not divide by the tensor-parallel ranks.
    """
    stages, parts = cut_units(cuts, costs, num_stages), parts_of(costs)
    asked_by = wanted_by(num_stages, mesh.pp_degree)
    problems = stage_cover(stages, [cost.name for cost in costs], num_stages, asked_by=asked_by, parts=parts)
    problems = problems or tp_findings(stages, parts, mesh.tp_degree)
    if problems:
        raise PlanError("pipeline.cuts: " + "; ".join(problems))
    return stages


def demand_word_each(recompute: RecomputeKind | Sequence[RecomputeKind], num_stages: int) -> None:
    """`pipeline.recompute` says one word for all stages, or one for each.

    Raises:
        PlanError: as many words as there are not stages.
    """
    if not isinstance(recompute, str) and len(recompute) != num_stages:
        raise PlanError(
            f"pipeline.recompute has {len(recompute)} words for {num_stages} stages; give one for each, or one for all"
        )


def stage_cover(
    stages: Sequence[Sequence[str]],
    unit_names: Sequence[str],
    num_stages: int | None = None,
    *,
    asked_by: str = "pp_degree",
    parts: Mapping[str, int] | None = None,
) -> tuple[str, ...]:
    """What is wrong with stages, one sentence each; empty if nothing is.

    Args:
        stages: names of units and of pieces (pieces.py) per stage.
        unit_names: the model's units in order.
        num_stages: how many stages there must be; None to accept any number.
        asked_by: what makes it that number, in words (`wanted_by`).
        parts: of the units that may be cut (`parts_of`); None if none may.
    """
    return tuple(_findings(stages, unit_names, num_stages, asked_by, parts or {}))


def parts_of(costs: Sequence[UnitCost]) -> dict[str, int]:
    """How many parts each unit has that a cut between stages may divide.

    Not the first unit: no carry enters it that its pieces could share. Not the last one: it returns the loss.
    """
    return {cost.name: cost.parts for cost in costs[1:-1] if cost.parts > 1}


def wanted_by(num_stages: int, pp_degree: int) -> str:
    """What makes it so many stages: "pp_degree", or "pp_degree 4 with 2 stages on each rank"."""
    per_rank, rest = divmod(num_stages, pp_degree)
    if rest:
        return f"the schedule on pp_degree {pp_degree}"
    return "pp_degree" if per_rank == 1 else f"pp_degree {pp_degree} with {per_rank} stages on each rank"


def tp_findings(stages: Sequence[Sequence[str]], parts: Mapping[str, int], tp_degree: int) -> tuple[str, ...]:
    """Cuts inside units that tensor parallelism forbids, one sentence each: all ranks hold the same slice of a shard.

    Args:
        stages: that hold the model (`stage_cover`).
        parts: of the units that may be cut.
    """
    pieces = [piece for stage in stages for piece in map(read_piece, stage) if piece is not None]
    findings = []
    for unit, edge in dict.fromkeys((piece.unit, piece.start) for piece in pieces if piece.start):
        whole = parts[unit]
        if whole % tp_degree:
            findings.append(
                f"unit {unit!r} has {whole} parts, which tp {tp_degree} does not divide, so it cannot be cut; cut "
                "before or after it, or change tp_degree"
            )
        elif edge % tp_degree:
            below = edge - edge % tp_degree
            valid = " or ".join(str(place) for place in (below, below + tp_degree) if 0 < place < whole)
            advice = f"cut at {valid}" if valid else "cut before or after the unit"
            findings.append(f"the cut at {edge} of unit {unit!r} is no multiple of tp {tp_degree}; {advice}")
    return tuple(dict.fromkeys(findings))


def _findings(
    stages: Sequence[Sequence[str]],
    unit_names: Sequence[str],
    num_stages: int | None,
    asked_by: str,
    parts: Mapping[str, int],
) -> Iterator[str]:
    if num_stages is not None and len(stages) != num_stages:
        yield f"{len(stages)} stages are given, but {asked_by} asks for {num_stages}"
    for index, stage in enumerate(stages):
        if not stage:
            yield f"stage {index} is empty; if its range is 'first..last', the last unit must not come before the first"
    all_held = [_held(name, index, parts) for index, stage in enumerate(stages) for name in stage]
    existing = set(unit_names)
    unknown = [unit for unit in dict.fromkeys(held.unit for held in all_held) if unit not in existing]
    for unit in unknown:
        yield f"the model has no unit {unit!r}{_nearest(unit, unit_names)}"
    by_unit: dict[str, list[_Held]] = {name: [] for name in unit_names}
    wrong = set(unknown)
    for held in all_held:
        problem = _no_piece(held, parts) if held.unit in existing else None
        if problem is not None:
            wrong.add(held.unit)
            yield problem
        by_unit.setdefault(held.unit, []).append(held)
    for unit in unit_names:
        if unit not in wrong:
            yield from _twice_or_never(by_unit[unit], parts.get(unit, 1))
    missing = [unit for unit in unit_names if not by_unit[unit]]
    if missing and not unknown:  # the ends of a range with an unknown name say nothing about what lies between
        yield f"{_count(missing)} on no stage: {_shown(missing)}"
    yield from _out_of_order([held for held in all_held if held.unit not in wrong], unit_names)


def _held(name: str, stage: int, parts: Mapping[str, int]) -> _Held:
    piece = read_piece(name)
    if piece is not None:
        return _Held(name, *piece, stage)
    unit, bracket, _ = name.partition("[")
    return _Held(name, name, 0, parts.get(name, 1), stage) if not bracket else _Held(name, unit, 0, 0, stage)


def _no_piece(held: _Held, parts: Mapping[str, int]) -> str | None:
    """Why a name does not mean a piece of its unit; None if it does, or means the whole unit."""
    if held.name == held.unit:
        return None
    if held.unit not in parts:
        return f"unit {held.unit!r} cannot be cut, but {held.name!r} is a piece of it; cut before or after the unit"
    if read_piece(held.name) is None:
        return f"{held.name!r} is no piece of unit {held.unit!r}; write '{held.unit}[first:end]' with whole numbers"
    if not held.start < held.stop <= parts[held.unit]:
        whole = parts[held.unit]
        return f"{held.name!r} is no piece of a unit of {whole} parts; start below its end, and end at {whole} or below"
    return None


def _twice_or_never(pieces: Sequence[_Held], parts: int) -> Iterator[str]:
    """Overlaps and gaps in one unit; that it is missing altogether is said elsewhere."""
    if not pieces:
        return
    ordered = sorted(pieces, key=lambda held: (held.start, held.stop))
    unit, whole = ordered[0].unit, [held for held in pieces if held.name == held.unit]
    if len(whole) == len(pieces) > 1:
        where = " and ".join(str(stage) for stage in dict.fromkeys(held.stage for held in pieces))
        yield f"unit {unit!r} is held {len(pieces)} times (stage {where}); each belongs to one stage"
        return
    end, holder = 0, -1
    for held in ordered:
        if held.start < end:
            upto = min(end, held.stop)
            yield (
                f"parts {held.start} to {upto} of unit {unit!r} are held twice (stage {holder} and {held.stage}); each "
                "belongs to one stage"
            )
        elif held.start > end:
            yield f"parts {end} to {held.start} of unit {unit!r} are on no stage"
        if held.stop > end:
            end, holder = held.stop, held.stage
    if end < parts:
        yield f"parts {end} to {parts} of unit {unit!r} are on no stage"


def _out_of_order(held: Sequence[_Held], unit_names: Sequence[str]) -> Iterator[str]:
    place = {name: index for index, name in enumerate(unit_names)}
    once = list({one.name: one for one in held}.values())
    for before, after in pairwise(once):
        if (place[before.unit], before.start) > (place[after.unit], after.start):
            yield f"unit {after.name!r} comes after {before.name!r}, but the model runs it before"


def _nearest(name: str, unit_names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, unit_names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; its units run from {unit_names[0]!r} to {unit_names[-1]!r}"


def _count(missing: Sequence[str]) -> str:
    return "1 unit is" if len(missing) == 1 else f"{len(missing)} units are"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
