"""From a plan to this rank's stages, and what groups and optimizer need to know of tied weights and sharded rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch.distributed as dist
from torch import nn

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.comm.under_way import Ledger
from hybrid_runtime.errors import PlanError, UsageError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.models.unit import UnitSpec
from hybrid_runtime.pieces import Piece, read_piece, unit_of
from hybrid_runtime.pipeline.lookups import Lookups
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.plan import Plan
from hybrid_runtime.schedule.actions import parse_actions
from hybrid_runtime.tensor_parallel.random_state import RandomStates
from hybrid_runtime.tensor_parallel.recompute import Recompute
from hybrid_runtime.training.update import TiedRows


class Copy(NamedTuple):
    """A unit's parameter that must stay equal to rows of the weight it is tied to.

    Attributes:
        rows: which, as a piece of the unit (pieces.py); None for all.
    """

    unit: str
    parameter: str
    pp_rank: int
    rows: Piece | None = None


class Tie(NamedTuple):
    """A weight and its copies on other ranks: the whole embedding's, or one of each rank's rows of a sharded one.

    The weight counts in the gradient norm. The copies say how it starts.
    """

    unit: str
    parameter: str
    pp_rank: int
    copies: tuple[Copy, ...]


def edges_of(plan: Plan) -> set[tuple[int, int]]:
    """Directed pairs of pp ranks that exchange messages in the plan's action lists."""
    place = plan.stage_to_rank
    pairs: set[tuple[int, int]] = set()
    for pp_rank, row in enumerate(plan.actions):
        for action in parse_actions(row):
            if action.kind.is_send:
                pairs.add((pp_rank, place[action.stage + (1 if action.kind.value == "SEND_F" else -1)]))
    return pairs


def find_tie(plan: Plan, specs: Sequence[UnitSpec]) -> Tie | None:
    """The model's tied weight, if it has one.

    Raises:
        PlanError: more than one weight is tied, a tie names an unknown unit, or one that is cut.
    """
    place = {unit: stage.pp_rank for stage in plan.stages for unit in stage.units}
    cut = {unit_of(unit) for unit in place if read_piece(unit)}
    ties = [(spec.name, own, *target) for spec in specs for own, target in spec.tied.items()]
    if not ties:
        return None
    if len(ties) > 1:
        raise PlanError(f"{len(ties)} tied weights; this runtime supports one (embedding and head)")
    unit, parameter, other, other_parameter = ties[0]
    if cut & {unit, other}:
        raise PlanError(
            f"unit {(cut & {unit, other}).pop()!r} has a tied weight and cannot be cut; cut before or after it"
        )
    if other not in place:
        raise PlanError(f"unit {unit!r} ties {parameter!r} to unknown unit {other!r}")
    copies = [Copy(other, other_parameter, place[other])]
    if plan.embedding_pieces and other == plan.stages[0].units[0]:
        pieces = enumerate(map(read_piece, plan.embedding_pieces))
        copies = [Copy(str(piece), other_parameter, rank, piece) for rank, piece in pieces if piece is not None]
    return Tie(unit, parameter, place[unit], tuple(copy for copy in copies if copy.pp_rank != place[unit]))


def tied_pairs(tie: Tie | None) -> list[tuple[int, int]]:
    """Pairs of pipeline ranks that hold the same rows of a tied weight."""
    return [] if tie is None else [(tie.pp_rank, copy.pp_rank) for copy in tie.copies]


def share_tied(tie: Tie | None, units: Mapping[str, nn.Module], groups: Groups) -> list[TiedRows]:
    """Makes a tied weight start as its copies on other ranks do: they are sent.

    Returns:
        What this rank holds of it twice with another rank; nothing if it has none, or if both ends share one Parameter.
    """
    if tie is None:
        return []
    place, mesh, found = groups.place, groups.mesh, list[TiedRows]()
    for copy in tie.copies:
        if place.pp not in (copy.pp_rank, tie.pp_rank):
            continue
        counts = place.pp == tie.pp_rank
        unit, parameter = (tie.unit, tie.parameter) if counts else (copy.unit, copy.parameter)
        axis = groups.tied[tie.pp_rank, copy.pp_rank]
        tied = TiedRows(
            units[unit].get_parameter(parameter), _local_rows(copy.rows, mesh) if counts else None, axis, counts
        )
        sender = int(copy.pp_rank > tie.pp_rank)  # its rank in the group of the two
        dist.broadcast(tied.of(tied.parameter), group=axis.group, group_src=sender)
        found.append(tied)
    return found


def _local_rows(piece: Piece | None, mesh: Mesh) -> tuple[int, int] | None:
    """Rows of the whole weight's share of a tensor rank: where a piece begins, and how many it has."""
    return None if piece is None else (piece.start // mesh.tp_degree, piece.parts // mesh.tp_degree)


def build_lookups(
    plan: Plan, units: Mapping[str, nn.Module], groups: Groups, ledger: Ledger | None = None
) -> Lookups | None:
    """The rank's part in the lookups of a sharded embedding; None if it has none.

    Raises:
        UsageError: stage 0's rank has no rows and its unit does not say what no rows add up to.
    """
    place, ranks = groups.place, lookup_ranks(plan)
    if place.pp not in ranks:
        return None
    name = plan.embedding_pieces[place.pp]
    first = (
        Stage(plan.stages_of(place.pp)[0].index, [(name, units[name])], training=plan.workload == "train")
        if name
        else None
    )
    zeros = None if name else getattr(units[plan.stages[0].units[0]], "zeros", None)
    if not name and not callable(zeros):
        raise UsageError(
            f"stage 0's rank has no rows in pipeline.embedding_rows and {plan.stages[0].units[0]!r} has no method "
            "zeros(tokens); add it, or give that rank rows"
        )
    return Lookups(first, zeros, ranks, groups, plan.num_microbatches, ledger)


def lookup_ranks(plan: Plan) -> tuple[int, ...]:
    """Pipeline ranks that take part in the lookups of a sharded embedding; stage 0's, where the sum is made, first."""
    if not plan.embedding_pieces:
        return ()
    home = plan.stage_to_rank[0]
    return home, *(rank for rank, piece in enumerate(plan.embedding_pieces) if piece and rank != home)


def build_stages(
    plan: Plan, pp_rank: int, units: Mapping[str, nn.Module], random: RandomStates | None = None
) -> dict[int, Stage]:
    """The rank's stages over its built units, by global stage index.

    Args:
        random: what units draw from that are computed again.
    """
    ends = plan.stages[0].units[0], plan.stages[-1].units[-1]
    stages = {}
    for stage in plan.stages_of(pp_rank):
        named = [(name, units[name]) for name in stage.units]
        stages[stage.index] = Stage(stage.index, named, training=plan.workload == "train")
        inner = [name for name in stage.units if name not in ends]
        stages[stage.index].recompute(Recompute(stage.recompute, random), inner)
    return stages
