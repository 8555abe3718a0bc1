"""From a plan to this rank's stages, and to the facts about tied weights that groups and optimizer need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import nn

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.errors import PlanError
from hybrid_runtime.models.unit import UnitSpec
from hybrid_runtime.pieces import read_piece, unit_of
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.plan import Plan
from hybrid_runtime.schedule.actions import parse_actions


@dataclass(frozen=True, slots=True)
class Tie:
    """One weight shared by two units: `owner` holds the counted copy, `user` the other."""

    owner_unit: str
    owner_parameter: str
    owner_pp_rank: int
    user_unit: str
    user_parameter: str
    user_pp_rank: int


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
    user, user_parameter, owner, owner_parameter = ties[0]
    if cut & {user, owner}:
        raise PlanError(
            f"unit {(cut & {user, owner}).pop()!r} has a tied weight and cannot be cut; cut before or after it"
        )
    if owner not in place:
        raise PlanError(f"unit {user!r} ties {user_parameter!r} to unknown unit {owner!r}")
    return Tie(owner, owner_parameter, place[owner], user, user_parameter, place[user])


def share_tied(tie: Tie | None, units: Mapping[str, nn.Module], groups: Groups) -> tuple[nn.Parameter | None, bool]:
    """Makes the two copies of a tied weight start equal, where they are on different ranks: the owner's is sent.

    Returns:
        This rank's copy (None if it has none, or if both ends share one Parameter), and whether it is the one that
        counts in the gradient norm.
    """
    if tie is None or tie.owner_pp_rank == tie.user_pp_rank:
        return None, True
    if groups.place.pp == tie.owner_pp_rank:
        copy, counts = units[tie.owner_unit].get_parameter(tie.owner_parameter), True
    elif groups.place.pp == tie.user_pp_rank:
        copy, counts = units[tie.user_unit].get_parameter(tie.user_parameter), False
    else:
        return None, True
    place, mesh = groups.place, groups.mesh
    owner = mesh.rank(dp=place.dp, pp=tie.owner_pp_rank, tp=place.tp)
    dist.broadcast(copy.detach(), owner, group=groups.tied.group)
    return copy, counts


def build_stages(plan: Plan, pp_rank: int, units: Mapping[str, nn.Module]) -> dict[int, Stage]:
    """The rank's stages over its built units, by global stage index."""
    return {
        stage.index: Stage(
            stage.index, [(name, units[name]) for name in stage.units], training=plan.workload == "train"
        )
        for stage in plan.stages_of(pp_rank)
    }
