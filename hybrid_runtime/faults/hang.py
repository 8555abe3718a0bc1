"""Why no rank comes further: of all ranks the one that is not itself waiting, or how they wait for each other.

    cut off    its machine and the others do not reach each other any more: their watchers have tried
    lifeless   stopped by a signal, ended, or cut off: its watcher has given no sign of life
    busy       it waits for nobody and is at one thing for too long: a data loader, a disk, a kernel that does not end
    lost       everybody has done their part in what it waits for: the link does not carry it
    circle     every one waits for the next

A hang is when *no* rank has begun anything for longer than the limit: a rank that is merely late lets others wait, and
is itself seen working.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hybrid_runtime.faults.waits import Scene, awaited, peers_of
from hybrid_runtime.records import UNHURRIED
from hybrid_runtime.telemetry.account import Account, process_state

_NAMED = 3  # ranks that a sentence names, of those that wait for the one
_LISTED = 16


class Hang(NamedTuple):
    """What has stopped a run.

    Attributes:
        culprits: the rank that the sentence is about first, then others of which the same is true.
        lifeless: they do not run any more, and no signal but SIGKILL ends them.
        sentence: one line: who, where, what, for how long, and who waits for it.
    """

    culprits: tuple[int, ...]
    lifeless: bool
    sentence: str


def lifeless_after_s(limit_s: float) -> float:
    """For how long a rank's watcher must have given no sign of life for the rank to be called lifeless."""
    return min(5.0, max(1.0, limit_s / 2))


def find_hang(scene: Scene, limit_s: float) -> Hang | None:
    """The hang, if there is one. Where an account is missing, a rank is still being set up: no hang yet."""
    accounts, now_ns = scene.accounts, scene.now_ns
    if len(accounts) < scene.plan.mesh.world_size:
        return None
    if any(now_ns - account.changed_ns < limit_s * 1e9 for account in accounts.values()):
        return None
    by_age = sorted(accounts, key=lambda rank: (accounts[rank].changed_ns, rank))
    lifeless = [rank for rank in by_age if now_ns - accounts[rank].beat_ns > lifeless_after_s(limit_s) * 1e9]
    unhurried = any(account.status.action in UNHURRIED for account in accounts.values())
    hosts = _cut_off({account.host: account for rank, account in accounts.items() if rank not in lifeless}, scene)
    if hosts and (lifeless or not unhurried):
        apart = [rank for rank in by_age if accounts[rank].host in hosts]
        return Hang(tuple(apart), False, _cut_off_words(apart, scene))
    if lifeless:
        return Hang(tuple(lifeless), True, _lifeless_words(lifeless, scene))
    if unhurried:
        return None
    busy = [rank for rank in by_age if accounts[rank].waiting is None]
    if busy:
        return Hang(tuple(busy), False, _busy_words(busy, scene))
    lost = [rank for rank in by_age if not awaited(rank, scene)]
    if lost:
        return Hang((lost[0],), False, _lost_words(lost[0], scene))
    circle = _circle(by_age[0], scene)
    return Hang(tuple(circle), False, _circle_words(circle, scene))


def account_text(rank: int, scene: Scene) -> str:
    """What a rank does, or for whom it waits, and its last actions with the seconds since then: several lines."""
    account = scene.accounts[rank]
    last = "".join(f"\n  {_ago(did.at_ns, scene):>9} ago  {did.text}" for did in account.last)
    if account.waiting is None:
        does = f"waits for no rank; began this {_ago(account.changed_ns, scene)} ago"
    else:
        missing = _names(awaited(rank, scene)) or "nobody who has not done their part"
        does = (
            f"waits in {account.waiting.name} ({account.waiting.axis}) for {missing}, for {_waits_since(rank, scene)}"
        )
    return f"{_place(rank, scene)}: {does}; last sign of life {_ago(account.beat_ns, scene)} ago{last}\n"


def _cut_off(living: Mapping[str, Account], scene: Scene) -> set[str]:
    """Of two groups of machines that do not reach each other any more, the smaller one; none where they do.

    Args:
        living: one account of each machine of which a sign of life has come.
    """
    far = {host for host, account in living.items() if account.reaches is False}
    near = {account.host for account in scene.accounts.values()} - far
    return far if len(far) <= len(near) else near


def _cut_off_words(apart: Sequence[int], scene: Scene) -> str:
    rank, host = apart[0], scene.accounts[apart[0]].host
    lost = {scene.accounts[each].host for each in apart}
    others = ", ".join(sorted({account.host for account in scene.accounts.values()} - lost))
    also = f" (so are {_names(apart[1:])})" if apart[1:] else ""
    return f"{_place(rank, scene)}: its machine {host} is cut off from {others}{also}{_who_waits(rank, scene)}"


def _lifeless_words(lifeless: Sequence[int], scene: Scene) -> str:
    rank, account = lifeless[0], scene.accounts[lifeless[0]]
    since = _ago(account.beat_ns, scene)
    words = f"gives no sign of life for {since}{_also(lifeless)}: {_why_lifeless(account)}"
    return f"{_place(rank, scene)}: {words}{_who_waits(rank, scene)}"


def _why_lifeless(account: Account) -> str:
    state = process_state(account)
    if not account.is_here:
        return f"stopped, or its machine {account.host} is cut off"
    if state in ("", "Z"):
        return "its process has ended"
    if state in ("T", "t"):
        return "its process was stopped by a signal (SIGSTOP)"
    return "its process is stuck outside Python"


def _busy_words(busy: Sequence[int], scene: Scene) -> str:
    since = _ago(scene.accounts[busy[0]].changed_ns, scene)
    return f"{_place(busy[0], scene)}: no further for {since}, and waits for no rank{_also(busy)}" + (
        _who_waits(busy[0], scene)
    )


def _also(ranks: Sequence[int]) -> str:
    return f" (nor do {_names(ranks[1:])})" if ranks[1:] else ""


def _lost_words(rank: int, scene: Scene) -> str:
    waiting = scene.accounts[rank].waiting
    assert waiting is not None
    words = f"{_place(rank, scene)}: waits in {waiting.name} for {_waits_since(rank, scene)}"
    peers = peers_of(rank, waiting, scene.plan.mesh)
    if not peers:
        return f"{words} for its own device: a kernel does not end, or a collective in it waits for a rank in vain"
    hosts = sorted({scene.accounts[each].host for each in (rank, *peers)})
    between = f" ({', '.join(hosts)})" if hosts[1:] else ""
    return f"{words} for {_names(peers)}, and what was sent does not arrive: the link between them is lost{between}"


def _circle(rank: int, scene: Scene) -> list[int]:
    """Follows who waits for whom until a rank comes up again."""
    path: list[int] = []
    while rank not in path:
        path.append(rank)
        rank = awaited(rank, scene)[0]
    return path[path.index(rank) :]


def _circle_words(circle: Sequence[int], scene: Scene) -> str:
    """ "rank 0 (...), ...: waits in 0RECV_B3 for rank 1, which waits in 1RECV_F4 for rank 0: in a circle, ..."."""
    ends = [*circle[1:], circle[0]]
    links = [f"waits in {_wait_name(rank, scene)} for rank {end}" for rank, end in zip(circle, ends, strict=True)]
    since = _ago(max(scene.accounts[rank].changed_ns for rank in circle), scene)
    return f"{_place(circle[0], scene)}: {', which '.join(links)}: a circle that has not moved for {since}"


def _who_waits(culprit: int, scene: Scene) -> str:
    """Those that wait for a rank itself, the most particular wait first: a message before a barrier of all."""
    waiting = {rank: account.waiting for rank, account in scene.accounts.items() if account.waiting is not None}
    waiters = [rank for rank in waiting if rank != culprit and culprit in awaited(rank, scene)]
    waiters.sort(key=lambda rank: (waiting[rank].axis == "all", rank))
    words = [
        f"rank {rank} waits for it in {waiting[rank].name} for {_waits_since(rank, scene)}" for rank in waiters[:_NAMED]
    ]
    more = [f"{len(waiters) - _NAMED} more wait for it"] if len(waiters) > _NAMED else []
    return "".join(f"; {text}" for text in [*words, *more])


def _wait_name(rank: int, scene: Scene) -> str:
    waiting = scene.accounts[rank].waiting
    return "nothing" if waiting is None else waiting.name


def _waits_since(rank: int, scene: Scene) -> str:
    waiting = scene.accounts[rank].waiting
    return "0 s" if waiting is None else _ago(waiting.at_ns, scene)


def _names(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:_LISTED])) + (", ..." if len(ranks) > _LISTED else "")
    return f"ranks {shown}" if ranks else ""


def _place(rank: int, scene: Scene) -> str:
    return f"{scene.plan.mesh.place(rank)}, {scene.accounts[rank].status}"


def _ago(then_ns: int, scene: Scene) -> str:
    return f"{(scene.now_ns - then_ns) / 1e9:.1f} s"
