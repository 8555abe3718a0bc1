"""Which steps a rank does: of a plain run all in a row, otherwise block by block as turns are given.

turn    block 0, 20 steps, all unjudged    block 1, planted     block 2, 1 unjudged + 10     ...
step    0  1  2 ... 19                     20 ... 139           140 ... 150
trained 0  1  2 ... 19                     -                    20 ... 30                  what the model has seen

A run that resumes a checkpoint has records of its own, from step 0 with a warm-up; `trained` goes on, to the same end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, cast

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.records import PLANTED, TRACE, TURN
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.turns import CANDIDATE, Turn, Turns

_WAITING = "waiting"
LEDGER_STEPS = 3  # warm-up steps watched by the byte ledger; step 0 is not one: the optimizer has no state yet


class Order(NamedTuple):
    """One step to do.

    Attributes:
        step: its number in the records.
        trained: how many steps the model has done before: which batch and learning rate come next.
        watch: the byte ledger watches it.
    """

    step: int
    trained: int
    block: int = 0
    phase: Literal["warmup", "measure"] = "measure"
    purpose: str = TRACE
    watch: bool = False

    def begin(self, recorder: NullRecorder) -> None:
        """Opens the step; call it right after the barrier."""
        recorder.begin_step(self.step, block=self.block, phase=self.phase, purpose=self.purpose, ledger=self.watch)


def orders(deployment: Deployment, turns: Turns | None, groups: Groups, trained: int = 0) -> Iterator[Order]:
    """All steps of a rank, waiting for this side's turn where there are any; every rank calls it.

    Args:
        trained: steps that the model was trained before.
    """
    step = 0
    for turn in _given(turns, groups, deployment.measurement.timeout_s) if turns else plain_turns(deployment, trained):
        for k in range(turn.steps):
            phase: Literal["warmup", "measure"] = "warmup" if k < turn.unjudged_steps else "measure"
            watch = turn.block == 0 and 0 < step <= LEDGER_STEPS and phase == "warmup"
            yield Order(step, trained, turn.block, phase, turn.purpose, watch)
            step += 1
            trained += turn.purpose != PLANTED
        if turns is not None:
            groups.barrier()
            if groups.place.rank == 0:
                turns.done(turn.block)


def plain_turns(deployment: Deployment, trained: int = 0) -> Iterator[Turn]:
    """A plain run, or what is left of one: warm-up, then one long block."""
    steps = deployment.workload.steps - trained
    warmup = min(deployment.measurement.warmup_steps, steps)
    yield Turn(CANDIDATE, 0, TRACE, warmup, warmup)
    if warmup < steps:
        yield Turn(CANDIDATE, 1, TRACE, 0, steps - warmup)


def _given(turns: Turns, groups: Groups, timeout_s: float) -> Iterator[Turn]:
    """Rank 0 waits for each turn and tells the others, now and then also that it still waits."""
    block = 0
    while True:
        groups.clocks.watch.doing(TURN)
        if groups.place.rank == 0:
            mine = turns.wait_for(block, timeout_s, still=lambda: groups.gather_objects(_WAITING))
            told = groups.gather_objects(mine)[0]
        else:
            while (told := groups.gather_objects(None)[0]) == _WAITING:
                pass
        if told is None:
            return
        yield cast("Turn", told)
        block += 1


def expected_steps(deployment: Deployment, side: str, *, alternating: bool, trained: int = 0) -> int:
    """How many steps a side will do at least, for the progress bar: undecided claims may ask for more."""
    if not alternating:
        return sum(turn.steps for turn in plain_turns(deployment, trained))
    measurement = deployment.measurement
    of_block = measurement.settle_steps + measurement.block_steps
    per_round = 2 if side == CANDIDATE else 1
    return measurement.warmup_steps + measurement.blocks * per_round * of_block
