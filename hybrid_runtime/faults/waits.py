"""Who waits for whom, from what the ranks' status files say.

    rank 0   wait=0RECV_B3 on=pp=1       for rank 1, unless rank 1 is past 1SEND_B3
    rank 1   wait=all_reduce on=tp       for those of its tensor group that are not in the same all-reduce, nor past it
    rank 2   wait=barrier on=all         for everybody who is not in this barrier

A rank that has done its part is not waited for: what it sent has been lost on the way, or is still to be received.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.plan import Plan
from hybrid_runtime.schedule.actions import Action, Kind, is_action, parse_action
from hybrid_runtime.telemetry.account import Account, Waiting

_SENT = {Kind.RECV_F: (-1, Kind.SEND_F), Kind.RECV_B: (1, Kind.SEND_B)}


class Scene(NamedTuple):
    """What is known of a run at one instant.

    Attributes:
        accounts: by rank.
        now_ns: on the clock of the accounts.
        lifeless_s: how old a rank's beat may be for what was written with it, its wait, to be true still.
    """

    accounts: Mapping[int, Account]
    plan: Plan
    now_ns: int
    lifeless_s: float = 5.0


def peers_of(rank: int, waiting: Waiting, mesh: Mesh) -> list[int]:
    """The other ranks of the axis that is waited on; none where the axis is not one of the mesh (a device)."""
    place = mesh.place(rank)
    if waiting.axis.startswith("pp="):
        members = [mesh.rank(dp=place.dp, pp=int(pp), tp=place.tp) for pp in waiting.axis[3:].split(",") if pp]
    elif waiting.axis == "tp":
        members = [mesh.rank(dp=place.dp, pp=place.pp, tp=tp) for tp in range(mesh.tp_degree)]
    elif waiting.axis == "dp":
        members = [mesh.rank(dp=dp, pp=place.pp, tp=place.tp) for dp in range(mesh.dp_degree)]
    elif waiting.axis == "replica":
        members = [other.rank for other in mesh.places() if other.dp == place.dp]
    elif waiting.axis == "all":
        members = list(range(mesh.world_size))
    else:
        members = []
    return [member for member in members if member != rank]


def awaited(rank: int, scene: Scene) -> list[int]:
    """The ranks for which a rank waits and which have not done their part; none where it waits for nobody."""
    me = scene.accounts[rank]
    if me.waiting is None:
        return []
    peers = peers_of(rank, me.waiting, scene.plan.mesh)
    return [peer for peer in peers if not _has_done_its_part(_known(peer, scene), me, me.waiting, scene.plan)]


def _known(rank: int, scene: Scene) -> Account:
    """A rank's account without a wait that may be over: it is written with the beat only, and outlives the rank."""
    account = scene.accounts[rank]
    if account.waiting is None:
        return account
    has_gone_on = account.last[-1].at_ns > account.waiting.at_ns
    is_lifeless = scene.now_ns - account.beat_ns > scene.lifeless_s * 1e9
    return account._replace(waiting=None) if has_gone_on or is_lifeless else account


def _has_done_its_part(peer: Account, me: Account, waiting: Waiting, plan: Plan) -> bool:
    if _step(peer) != _step(me):
        return _step(peer) > _step(me)
    if is_action(waiting.name) and (receive := parse_action(waiting.name)).kind in _SENT:
        by, kind = _SENT[receive.kind]
        return _is_past(peer, Action(receive.stage + by, kind, receive.microbatch), plan)
    if waiting.axis in ("tp", "dp") and peer.number != me.number:  # their lists are equal
        return peer.number > me.number
    if peer.waiting is None:
        return False
    if (peer.waiting.name, peer.waiting.axis) == (waiting.name, waiting.axis):
        return True
    if waiting.axis in ("tp", "dp"):
        return False
    if waiting.axis == "all":  # numbers are gathered at the end of a step, the barrier comes after
        return peer.waiting.name == "barrier"
    return peer.waiting.axis == "all"


def _step(account: Account) -> int:
    return -1 if account.status.step is None else account.status.step


def _is_past(account: Account, action: Action, plan: Plan) -> bool:
    """Whether a rank has begun something that comes after the action in its list."""
    names = plan.actions[plan.mesh.place(account.rank).pp]
    if account.status.action in names:
        return names.index(account.status.action) > names.index(str(action))
    in_this_step = [did.text for did in account.last[-account.number - 1 :]]
    return any(text in names for text in in_this_step)  # then it is done with its list
