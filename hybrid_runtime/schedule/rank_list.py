"""One rank's list while a generator writes it: it knows the next microbatch of every stage, and which W are pending."""

from __future__ import annotations

from collections import Counter, deque

from hybrid_runtime.schedule.actions import Action, ActionList, Cell, CellList, Kind, Overlap, flatten


class RankList:
    """Actions are asked for by kind and stage; each takes the next microbatch of its kind on that stage.

    I and B are the same count, for a microbatch has one of them. Every I leaves a W pending, first in, first out.
    """

    def __init__(self) -> None:
        self._cells: list[Cell] = []
        self._count: Counter[tuple[Kind, int]] = Counter()
        self._pending: deque[Action] = deque()

    def add(self, kind: Kind, stage: int, times: int = 1) -> None:
        """Appends F, I or B of the next microbatch of a stage, or of the next few."""
        for _ in range(times):
            self._cells.append(self._take(kind, stage))

    def add_overlap(self, forward_stage: int, backward_stage: int) -> None:
        """Appends an F of one stage that may overlap with a B of another."""
        self._cells.append(Overlap(self._take(Kind.F, forward_stage), self._take(Kind.B, backward_stage)))

    def add_pending_weight(self) -> None:
        """Appends the oldest pending W of any stage, if there is one."""
        if self._pending:
            self._cells.append(self._pending.popleft())

    def add_weight(self, stage: int) -> None:
        """Appends the oldest pending W of a stage; there must be one."""
        oldest = next(action for action in self._pending if action.stage == stage)
        self._pending.remove(oldest)
        self._cells.append(oldest)

    def count(self, kind: Kind, stage: int) -> int:
        """How many F, or I and B together, the stage has so far."""
        return self._count[_counted_as(kind), stage]

    @property
    def pending(self) -> int:
        """How many W are pending."""
        return len(self._pending)

    def pending_of(self, stage: int) -> int:
        """How many W of a stage are pending."""
        return sum(action.stage == stage for action in self._pending)

    def cells(self) -> CellList:
        """The finished list: what is there, then every pending W."""
        return (*self._cells, *self._pending)

    def actions(self) -> ActionList:
        """The finished list without overlaps."""
        return flatten(self.cells())

    def _take(self, kind: Kind, stage: int) -> Action:
        action = Action(stage, kind, self._count[_counted_as(kind), stage])
        self._count[_counted_as(kind), stage] += 1
        if kind is Kind.I:
            self._pending.append(Action(stage, Kind.W, action.microbatch))
        return action


def _counted_as(kind: Kind) -> Kind:
    return Kind.I if kind is Kind.B else kind
