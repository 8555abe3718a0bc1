"""What the actions of a step cost: time, messages and bytes, as the replay and the search take them.

Times are exact (int or Fraction) in any one unit: nanoseconds, FLOPs, or multiples of one forward.

A hop takes latency + bytes / bandwidth. It is a *lag* where a network card moves the bytes: nobody is busy, but
messages of one directed edge follow each other. It is *blocking* where the ranks copy the bytes themselves: both are
busy for bytes / bandwidth.

    lag        rank 0 | F0 F1           blocking   rank 0 | F0 >> F1 >>
               rank 1 |    >>F0                    rank 1 |    >> F0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.messages import DirectedEdge

Time = int | Fraction
StageKind = tuple[int, Kind]  # (stage, kind of action)


@dataclass(frozen=True, slots=True)
class Hop:
    """One directed edge between two pipeline ranks.

    Attributes:
        latency: time until the first byte arrives.
        bandwidth: bytes per unit of time; None if bytes cost no time.
        blocking: both ranks are busy while the bytes move.
    """

    latency: Time = 0
    bandwidth: Time | None = None
    blocking: bool = False

    def transfer(self, num_bytes: int) -> Time:
        """Time that a message occupies the edge, and with `blocking` both ranks."""
        return 0 if self.bandwidth is None else exact(Fraction(num_bytes) / self.bandwidth)


class Received(NamedTuple):
    """What becomes of the buffers that a message arrives in.

    Attributes:
        num_bytes: of the message.
        kept_bytes: of them, what the action that takes it is said to keep as activations.
        until: the kinds of action of that stage and microbatch at whose end the buffers go back to their pool.
    """

    num_bytes: int
    kept_bytes: int = 0
    until: tuple[Kind, ...] = ()


@dataclass(frozen=True, slots=True)
class ActionBytes:
    """Bytes per (stage, kind); what is not named is 0.

    Attributes:
        kept: taken at the start of the action and kept after it (activations, by F).
        freed: given back at its end (by I, W or B).
        temporary: held only while it runs.
        received: per (stage, RECV_F or RECV_B), and (0, EF) for the sum of a sharded embedding that stage 0 takes.
    """

    kept: Mapping[StageKind, int] = field(default_factory=dict)
    freed: Mapping[StageKind, int] = field(default_factory=dict)
    temporary: Mapping[StageKind, int] = field(default_factory=dict)
    received: Mapping[StageKind, Received] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Costs of every action of one step.

    Attributes:
        durations: compute time per (stage, kind); a missing B takes as long as I and W together. EF and EB of a sharded
            embedding read and add rows and compute nothing: they take no time unless one is given.
        tensor_parallel: time of collectives in an action that nothing hides; it occupies the rank, but is not compute.
        hop: every directed edge that `hops` does not name.
        hops: edges by (source, destination) pipeline rank.
        message_bytes: per (stage, SEND_F or SEND_B), what the stage sends; per (stage, EF) what its rank adds to a sum,
            of (0, EB) the gradient that stage 0's rank sends to all others with rows.
        action_bytes: what the actions keep and free.
    """

    durations: Mapping[StageKind, Time]
    tensor_parallel: Mapping[StageKind, Time] = field(default_factory=dict)
    hop: Hop = Hop()
    hops: Mapping[DirectedEdge, Hop] = field(default_factory=dict)
    message_bytes: Mapping[StageKind, int] = field(default_factory=dict)
    action_bytes: ActionBytes = field(default_factory=ActionBytes)

    def hop_of(self, edge: DirectedEdge) -> Hop:
        return self.hops.get(edge, self.hop)

    def transfer(self, stage: int, send: Kind, edge: DirectedEdge) -> Time:
        """Time that a message of a stage occupies its edge."""
        return self.hop_of(edge).transfer(self.message_bytes.get((stage, send), 0))

    def compute(self, stage: int, kind: Kind) -> Time:
        """Compute time of an action, without collectives.

        Raises:
            PlanError: no duration is given for it.
        """
        return self._sum(self.durations, stage, kind, f"no duration is given for {kind.value} of stage {stage}")

    def collectives(self, stage: int, kind: Kind) -> Time:
        """Tensor-parallel time of an action that nothing hides."""
        return self._sum(self.tensor_parallel, stage, kind, None)

    @staticmethod
    def _sum(times: Mapping[StageKind, Time], stage: int, kind: Kind, missing: str | None) -> Time:
        halves = (Kind.I, Kind.W) if kind is Kind.B and (stage, kind) not in times else (kind,)
        if missing is not None and not kind.is_lookup and any((stage, half) not in times for half in halves):
            raise PlanError(f"{missing}; give the time of every stage and kind that the lists use")
        return sum((times.get((stage, half), 0) for half in halves), start=0)


def activation_bytes(
    bytes_of_stage: Sequence[int], until_w: Fraction = Fraction(1), temporary: Mapping[StageKind, int] | None = None
) -> ActionBytes:
    """F keeps a stage's activations of one microbatch; I frees the part 1 - until_w, W the rest, B everything.

    Args:
        bytes_of_stage: per stage, for one microbatch.
        until_w: the part that stays until W, 0 to 1; linears keep their inputs and output gradients, so about 1.
        temporary: bytes held only while an action runs.
    """
    kept: dict[StageKind, int] = {}
    freed: dict[StageKind, int] = {}
    for stage, num_bytes in enumerate(bytes_of_stage):
        for_w = int(num_bytes * until_w)
        kept[stage, Kind.F] = num_bytes
        freed |= {(stage, Kind.I): num_bytes - for_w, (stage, Kind.W): for_w, (stage, Kind.B): num_bytes}
    return ActionBytes(kept, freed, temporary or {})


def exact(time: Time) -> Time:
    """The same time, as an int if it is whole."""
    return time.numerator if time.denominator == 1 else time
