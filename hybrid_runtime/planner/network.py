"""What collectives and messages take: as calibrated on this machine, as a file declares its links, or nothing.

All of it is `modelled`. What a calibration does not hold is never made up: it counts as 0 and is named.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

from hybrid_runtime.calibration import Calibration
from hybrid_runtime.deployment import Hardware
from hybrid_runtime.exact import parse_gb_per_s

_Point = tuple[int, int]  # bytes, nanoseconds


class Network(Protocol):
    """Times of communication, in whole nanoseconds.

    Attributes:
        source: where they come from, in words.
    """

    @property
    def source(self) -> str: ...

    def collective_ns(self, kind: str, ranks: int, num_bytes: int) -> int:
        """What a collective takes beside the rank's own computing; `num_bytes` of the whole tensor."""

    def compute_ns(self, kind: str, ranks: int, num_bytes: int) -> int:
        """What a rank computes more in it than a rank alone did: only in shared memory on a CPU."""

    def message_ns(self, num_bytes: int) -> int:
        """From the end of the sender's action until the tensors are there."""

    def post_ns(self, num_bytes: int) -> int:
        """What a message takes from each of its two ranks while they compute: only on a CPU."""

    def missing(self) -> tuple[str, ...]:
        """What was asked for and is not known, in words."""


class FreeNetwork:
    """Communication that costs no time: an upper bound of what a plan can do."""

    source = "communication costs nothing: neither calibration.json nor hardware.min_link_bandwidth is there"

    def collective_ns(self, kind: str, ranks: int, num_bytes: int) -> int:
        return 0

    def compute_ns(self, kind: str, ranks: int, num_bytes: int) -> int:
        return 0

    def message_ns(self, num_bytes: int) -> int:
        return 0

    def post_ns(self, num_bytes: int) -> int:
        return 0

    def missing(self) -> tuple[str, ...]:
        return ()


class DeclaredNetwork:
    """Links of one declared bandwidth and no latency; collectives as rings.

    A ring moves (ranks - 1) / ranks of the tensor over every link, an all-reduce twice that (Patarasuk and Yuan 2009).

    Args:
        bytes_per_s: of one direction of a link.
    """

    def __init__(self, bytes_per_s: Fraction) -> None:
        self._bytes_per_s = bytes_per_s
        self.source = f"declared: links of {float(bytes_per_s / 10**9):g} GB/s, no latency"

    def collective_ns(self, kind: str, ranks: int, num_bytes: int) -> int:
        rounds = 2 if kind.endswith("all_reduce") else 1
        return self.message_ns(num_bytes * rounds * (ranks - 1) // ranks)

    def compute_ns(self, kind: str, ranks: int, num_bytes: int) -> int:
        return 0

    def message_ns(self, num_bytes: int) -> int:
        return int(num_bytes * 10**9 / self._bytes_per_s)

    def post_ns(self, num_bytes: int) -> int:
        return 0

    def missing(self) -> tuple[str, ...]:
        return ()


class CalibratedNetwork:
    """Medians that were measured on this machine; between two sizes they are joined by a straight line.

    Below the smallest size a call takes as long as that one. Above the largest it grows in proportion, and `missing`
    says so.
    """

    source = "calibration.json"

    def __init__(self, calibration: Calibration) -> None:
        self._lines: dict[tuple[str, int], list[_Point]] = {}
        self._computed: dict[tuple[str, int], list[_Point]] = {}
        for found in calibration.collectives:
            key, size = (found.kind, found.ranks), found.num_bytes
            self._lines.setdefault(key, []).append((size, max(0, found.time.p50_ns - found.own_cpu_ns)))
            self._computed.setdefault(key, []).append((size, max(0, found.own_cpu_ns - found.lone_cpu_ns)))
        messages = [(found.num_bytes, found.one_way.p50_ns) for found in calibration.messages]
        self._messages = sorted(messages)
        self._posts = sorted((found.num_bytes, found.post_ns) for found in calibration.messages)
        for line in (*self._lines.values(), *self._computed.values()):
            line.sort()
        self._not_measured = calibration.not_measured
        self._missing: dict[str, None] = {}

    def collective_ns(self, kind: str, ranks: int, num_bytes: int) -> int:
        words = f"{kind} of {ranks} ranks"
        return self._read(words, self._lines.get((kind, ranks), []), num_bytes)

    def compute_ns(self, kind: str, ranks: int, num_bytes: int) -> int:
        return self._read(f"{kind} of {ranks} ranks", self._computed.get((kind, ranks), []), num_bytes)

    def message_ns(self, num_bytes: int) -> int:
        return self._read("messages", self._messages, num_bytes)

    def post_ns(self, num_bytes: int) -> int:
        return self._read("messages", self._posts, num_bytes)

    def missing(self) -> tuple[str, ...]:
        return tuple(self._missing)

    def _read(self, what: str, line: Sequence[_Point], num_bytes: int) -> int:
        if not line:
            why = self._not_measured.get(what, "calibrate this file again")
            self._missing[f"{what}: not in calibration.json ({why}); counted as 0"] = None
            return 0
        if num_bytes > line[-1][0]:
            self._missing[f"{what} of {num_bytes} bytes: extrapolated from {line[-1][0]} bytes"] = None
            return line[-1][1] * num_bytes // line[-1][0]
        place = bisect_left(line, (num_bytes, 0))
        if place == 0 or line[place][0] == num_bytes:
            return line[place][1]
        (low, fast), (high, slow) = line[place - 1], line[place]
        return fast + (slow - fast) * (num_bytes - low) // (high - low)


def network_of(calibration: Calibration | None, hardware: Hardware) -> Network:
    """The best that is known: a calibration, else what the file declares, else nothing."""
    if calibration is not None:
        return CalibratedNetwork(calibration)
    if hardware.min_link_bandwidth is not None:
        return DeclaredNetwork(parse_gb_per_s(hardware.min_link_bandwidth) * 10**9)
    return FreeNetwork()
