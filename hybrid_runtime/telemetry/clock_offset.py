"""How far the clocks of other hosts are from rank 0's.

    rank R   sent ---.                  .--> received
    rank 0            '-> remote stamp -'

The remote stamp lies somewhere between sent and received, so the ping-pong with the smallest round trip bounds the
offset best: remote - (sent + received) / 2, wrong by at most half the round trip (Cristian 1989). Ranks of one machine
share CLOCK_MONOTONIC and need none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic_ns
from typing import NamedTuple

import torch
import torch.distributed as dist


class PingPong(NamedTuple):
    """One exchange: local send time, the other's stamp, local receive time; all in ns."""

    sent_ns: int
    remote_ns: int
    received_ns: int


class ClockOffset(NamedTuple):
    """`local + offset_ns` is rank 0's time, give or take `uncertainty_ns`."""

    offset_ns: int
    uncertainty_ns: int


def offset_of(samples: Sequence[PingPong]) -> ClockOffset:
    """The offset and its bound from the exchange with the smallest round trip.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("an offset needs at least one ping-pong")
    best = min(samples, key=lambda sample: sample.received_ns - sample.sent_ns)
    round_trip_ns = best.received_ns - best.sent_ns
    return ClockOffset(best.remote_ns - best.sent_ns - round_trip_ns // 2, (round_trip_ns + 1) // 2)


def measure_offset(
    rank: int,
    clocks: Sequence[str],
    *,
    group: dist.ProcessGroup | None = None,
    rounds: int = 32,
    force: bool = False,
    device: torch.device | None = None,
) -> ClockOffset:
    """Every rank of `group` calls this; rank 0 answers one rank after the other, and all ranks return theirs.

    Args:
        rank: place in `group`.
        clocks: whose clock every rank of `group` reads, in any words (`kernel.Kernel.clock`); ranks that read rank 0's
            get an offset of exactly zero.
        group: a group that can send and receive tensors on `device`; gloo and CPU tensors are best.
        force: measure ranks that read rank 0's clock too (tests).
    """
    stamp = torch.zeros((), dtype=torch.int64, device=device or torch.device("cpu"))
    measured = [other for other in range(1, len(clocks)) if force or clocks[other] != clocks[0]]
    if rank == 0:
        for other in measured:
            for _ in range(rounds):
                dist.recv(stamp, group=group, group_src=other)
                stamp.fill_(monotonic_ns())
                dist.send(stamp, group=group, group_dst=other)
    if rank not in measured:
        return ClockOffset(0, 0)
    return offset_of([_exchange(stamp, group) for _ in range(rounds)])


def _exchange(stamp: torch.Tensor, group: dist.ProcessGroup | None) -> PingPong:
    sent_ns = monotonic_ns()
    dist.send(stamp, group=group, group_dst=0)
    dist.recv(stamp, group=group, group_src=0)
    remote_ns = int(stamp.item())  # on a GPU this waits for the receive, so it belongs before the stamp
    return PingPong(sent_ns, remote_ns, monotonic_ns())
