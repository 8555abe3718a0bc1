"""What a replay says: times of every action, busy and idle time, bubbles, most bytes held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from hybrid_runtime.schedule.actions import Action
from hybrid_runtime.schedule.replay_loop import peak_rows
from hybrid_runtime.schedule.rows import KINDS, Rows
from hybrid_runtime.schedule.step_costs import ActionBytes, StageKind, StepCosts, Time, exact


class Timed(NamedTuple):
    """One compute action with its start and end."""

    action: Action
    start: Time
    end: Time


class Peak(NamedTuple):
    """Most bytes that a rank holds, and the action that first holds them; None if nothing is ever held."""

    num_bytes: int
    action: Action | None


@dataclass(frozen=True)
class Replay:
    """A replayed step. Times are in the unit of the costs; the step starts at 0.

    Attributes:
        rows: what was replayed.
        costs: with what.
        starts, ends: of every operation of `rows`, in ticks.
        lags: per class of operations, how much later its takers may start, in ticks.
        tick: duration of a tick.
    """

    rows: Rows
    costs: StepCosts
    starts: Sequence[int]
    ends: Sequence[int]
    lags: Sequence[int]
    tick: Fraction

    def time(self, ticks: int) -> Time:
        """Ticks in the unit of the costs."""
        return exact(ticks * self.tick)

    @cached_property
    def ranks(self) -> tuple[tuple[Timed, ...], ...]:
        """Per pipeline rank, its compute actions in order."""
        return tuple(
            tuple(
                Timed(self.rows.actions[index], self.time(self.starts[index]), self.time(self.ends[index]))
                for index in self.rows.row(rank)
                if self.rows.actions[index].kind.is_compute
            )
            for rank in range(self.rows.num_ranks)
        )

    @cached_property
    def makespan(self) -> Time:
        """End of the last action."""
        lists = (self.rows.row(rank) for rank in range(self.rows.num_ranks))
        return self.time(max((self.ends[row[-1]] for row in lists if row), default=0))

    @cached_property
    def busy(self) -> tuple[Time, ...]:
        """Per rank, the sum of its compute times; collectives that nothing hides and messages are not compute."""
        return tuple(
            sum((self.costs.compute(action.stage, action.kind) * count for action, count in counted), start=0)
            for counted in map(self._compute_counts, range(self.rows.num_ranks))
        )

    @property
    def idle(self) -> tuple[Time, ...]:
        """Per rank, what is left of the makespan."""
        return tuple(self.makespan - busy for busy in self.busy)

    @property
    def bubble(self) -> Fraction:
        """1 - sum(busy) / (ranks * makespan): the idle share of all ranks' time in a step that ends together."""
        whole = self.rows.num_ranks * self.makespan
        return 1 - Fraction(sum(self.busy)) / whole if whole else Fraction(0)

    @property
    def span_bubble(self) -> Fraction:
        """1 - max(busy) / longest time from a rank's first start to its last end (Qi et al. 2023, arXiv 2401.10241).

        It is what a step loses if consecutive steps overlap, which needs an optimizer without a global barrier.
        """
        lists = (self.rows.row(rank) for rank in range(self.rows.num_ranks))
        span = max((self.ends[row[-1]] - self.starts[row[0]] for row in lists if row), default=0)
        return 1 - max(self.busy) / Fraction(span * self.tick) if span else Fraction(0)

    @cached_property
    def peaks(self) -> tuple[Peak, ...]:
        """Per rank, the most bytes that its actions hold at once."""
        return peak_bytes(self.rows, self.costs)

    def _compute_counts(self, rank: int) -> Iterable[tuple[Action, int]]:
        """Every compute (stage, kind) of a rank, as its first action, and how many there are."""
        counts: dict[int, tuple[Action, int]] = {}
        for index in self.rows.row(rank):
            action = self.rows.actions[index]
            if action.kind.is_compute:
                first, count = counts.get(self.rows.classes[index], (action, 0))
                counts[self.rows.classes[index]] = first, count + 1
        return counts.values()


def peak_of_rank(rows: Rows, rank: int, action_bytes: ActionBytes) -> int:
    """As `peak_bytes`, of one rank alone."""
    of_class = ([0] * (len(KINDS) * len(rows.stage_to_rank)) for _ in range(3))
    sizes = action_bytes.kept, action_bytes.freed, action_bytes.temporary
    kept, freed, temporary = (_by_class(row, named) for row, named in zip(of_class, sizes))
    peaks = [0]
    peak_rows(rows.row_starts[rank : rank + 2], rows.classes, kept, freed, temporary, peaks, [-1])
    return peaks[0]


def _by_class(row: list[int], named: Mapping[StageKind, int]) -> list[int]:
    for (stage, kind), num_bytes in named.items():
        row[len(KINDS) * stage + KINDS.index(kind)] = num_bytes
    return row


def peak_bytes(rows: Rows, costs: StepCosts) -> tuple[Peak, ...]:
    """Per rank, the most bytes that its actions hold at once; the order of its list alone decides."""
    peaks, at = [0] * rows.num_ranks, [-1] * rows.num_ranks
    kept, freed, temporary = (
        [num_bytes.get((stage, kind), 0) for stage in range(len(rows.stage_to_rank)) for kind in KINDS]
        for num_bytes in (costs.action_bytes.kept, costs.action_bytes.freed, costs.action_bytes.temporary)
    )
    peak_rows(rows.row_starts, rows.classes, kept, freed, temporary, peaks, at)
    return tuple(Peak(peak, rows.actions[index] if index >= 0 else None) for peak, index in zip(peaks, at))
