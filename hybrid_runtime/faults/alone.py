"""What a rank says that has to judge alone, for the run folder does not answer: its disk is lost, or its own machine.

    rank 1 (...), stage 1, step 7, 1F0: waits in 1RECV_F0 for rank 0 for 10.4 s, and runs/x does not answer; this
    machine, host2, is cut off: it does not reach host1:29500, where the ranks met

It hears of nobody, so what it says is of itself: for whom it waits, for how long, and what it has tried.
"""

from __future__ import annotations

from pathlib import Path

from hybrid_runtime.faults.waits import peers_of
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.records import UNHURRIED
from hybrid_runtime.telemetry.account import Account


def waits_alone(account: Account) -> bool:
    """Whether a rank that hears of nobody can say that it is held up: it waits for others, whom it cannot reach, or in
    something that does not take any time."""
    return account.waiting is not None and (account.reaches is False or account.status.action not in UNHURRIED)


def alone_words(account: Account, mesh: Mesh, folder: Path, now_ns: int, meeting_point: str | None) -> str:
    """One line: who waits for whom, and what does not answer.

    Args:
        account: the rank's own, as it knows it itself.
        now_ns: on the account's clock.
        meeting_point: where the ranks met, if there is such a place beyond this machine.
    """
    assert account.waiting is not None
    peers = [f"{peer}" for peer in peers_of(account.rank, account.waiting, mesh)]
    whom = f"rank{'s' * (len(peers) > 1)} {', '.join(peers)}" if peers else "its own device"
    since = f"{(now_ns - account.waiting.at_ns) / 1e9:.1f} s"
    words = f"waits in {account.waiting.name} for {whom} for {since}, and {folder} does not answer"
    return f"{mesh.place(account.rank)}, {account.status}: {words}; {_why(account, meeting_point)}"


def _why(account: Account, meeting_point: str | None) -> str:
    if meeting_point is None or account.reaches is None:
        return "the disk is lost, or what is on it"
    if account.reaches:
        return f"this machine, {account.host}, still reaches {meeting_point}, where the ranks met: the disk is lost"
    return f"this machine, {account.host}, is cut off: it does not reach {meeting_point}, where the ranks met"
