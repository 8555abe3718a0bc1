"""A connection to another rank that has ended: to which rank, and whether that rank or only the link is gone."""

from __future__ import annotations

import time
from pathlib import Path

from hybrid_runtime.faults.waits import peers_of
from hybrid_runtime.plan import Plan
from hybrid_runtime.schedule.actions import Kind, is_action, parse_action
from hybrid_runtime.telemetry.account import Account, process_state, read_account

_ENDING_S = 0.3  # from the moment a killed process closes its connections until the system calls it ended
_POLL_S = 0.01
_OR_CUT_OFF = ", or whose machine is cut off"
_TOWARDS = {Kind.SEND_F: (1,), Kind.RECV_B: (1,), Kind.SEND_B: (-1,), Kind.RECV_F: (-1,)}


def explain_lost(status: Path, plan: Plan | None, rank: int) -> tuple[str, bool]:
    """What a rank says that has lost a connection, and whether it follows from another rank's end.

    Args:
        status: `RunFolder.status`.
    """
    mine = read_account(status / f"rank{rank}")
    peers = [] if mine is None or plan is None else _peers(mine, plan)
    found = {peer: read_account(status / f"rank{peer}") for peer in peers}
    deadline_s = time.monotonic() + _ENDING_S
    while not (ended := [peer for peer, account in found.items() if _has_ended(account)]):
        if not peers or time.monotonic() > deadline_s:
            break
        time.sleep(_POLL_S)
    if ended or not peers:
        who = f"rank {ended[0]}" if len(ended) == 1 else "another rank"
        far = any(account is not None and not account.is_here for account in found.values())
        return f"lost the connection to {who}, which failed or was killed before{_OR_CUT_OFF * far}", True
    who = f"rank {peers[0]}, which still runs" if len(peers) == 1 else f"one of ranks {peers}, which still run"
    return f"lost the connection to {who}: the link between them is lost", False


def _has_ended(account: Account | None) -> bool:
    """Or runs on another machine, where nobody can say."""
    return account is None or process_state(account) in ("", "Z")


def _peers(mine: Account, plan: Plan) -> list[int]:
    if mine.waiting is not None:
        return peers_of(mine.rank, mine.waiting, plan.mesh)
    if not is_action(mine.status.action):
        return []
    action, place = parse_action(mine.status.action), plan.mesh.place(mine.rank)
    stages = [
        action.stage + way for way in _TOWARDS.get(action.kind, (-1, 1))
    ]  # messages are also posted beside compute
    targets = {plan.stage_to_rank[stage] for stage in stages if 0 <= stage < len(plan.stage_to_rank)} - {place.pp}
    return [plan.mesh.rank(dp=place.dp, pp=target, tp=place.tp) for target in sorted(targets)]
