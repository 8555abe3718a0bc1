"""Where the ranks of several machines met: whether this machine still reaches it tells who is cut off.

A watcher tries it when its rank is stuck. Nothing is sent: that the other end answers at all, be it with a refusal,
says that the network carries.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import NamedTuple

_AT_FIRST_S = 2.0


class MeetingPoint(NamedTuple):
    """The store at which the ranks met; `address` is what its name meant then, for a lost network has no names."""

    name: str
    family: int
    address: tuple[object, ...]

    def answers(self, within_s: float) -> bool:
        """Whether this machine reaches it."""
        with socket.socket(self.family, socket.SOCK_STREAM) as probe:
            probe.settimeout(within_s)
            try:
                probe.connect(self.address)
            except ConnectionRefusedError:  # nobody listens any more, but the machine has answered
                return True
            except OSError:
                return False
            return True


def meeting_point(environment: Mapping[str, str]) -> MeetingPoint | None:
    """By what torchrun tells its ranks; None where all of them are on one machine, or no address answers even now."""
    if environment.get("WORLD_SIZE") == environment.get("LOCAL_WORLD_SIZE") or "MASTER_ADDR" not in environment:
        return None
    host, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return None
    points = (MeetingPoint(f"{host}:{port}", family, address) for family, _, _, _, address in found)
    return next((point for point in points if point.answers(_AT_FIRST_S)), None)
