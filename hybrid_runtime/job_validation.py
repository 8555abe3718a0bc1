"""Validation losses of a training: forwards over documents that are never trained on, between its steps.

    step 99   | step 100 | validation: validation_batches global batches, forwards only | step 101
    measured    measured   not a step: no record, no span, no wait is written             measured

It always reads the same samples, so its losses can be compared. Nothing that the training depends on changes: no
parameter, no random state, no position in the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from torch import nn

from hybrid_runtime.comm.axis import NoClock
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.data.mixture import Mixture
from hybrid_runtime.data.sampler import Batches
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import UsageError
from hybrid_runtime.job_loss import mean_loss
from hybrid_runtime.job_parts import Built, Parts
from hybrid_runtime.job_progress import RankNumbers
from hybrid_runtime.pipeline.build import build_lookups, build_stages
from hybrid_runtime.pipeline.executor import Executor
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.validation_plan import validation_plan
from hybrid_runtime.schedule.actions import parse_actions
from hybrid_runtime.telemetry.recorder import NullRecorder


@dataclass(frozen=True, slots=True)
class Validation:
    """What one rank validates with, and when.

    Attributes:
        every: steps of training between two validations.
        steps: of the whole training; the last one ends with a validation.
        count: global batches of one validation.
    """

    every: int
    steps: int
    count: int
    executor: Executor
    batches: Batches
    units: Mapping[str, nn.Module]
    groups: Groups
    plan: Plan

    def after_step(self, trained: int, numbers: Sequence[RankNumbers] = ()) -> float | None:
        """Every rank calls this after every step, with the same numbers, so that all decide alike.

        Args:
            trained: steps that the model has been trained now.

        Returns:
            The mean loss over the targets of all batches, where it is time for one; not where a rank was told to leave.
        """
        if (trained % self.every and trained != self.steps) or any(rank.asked_to_stop for rank in numbers):
            return None
        loss_sum, num_targets, known = 0.0, 0, 0.0
        with _undisturbed(self.groups, self.units):
            for number in range(self.count):
                found = self.executor.run_step(self.batches.microbatches(number))
                num_targets += self.batches.num_targets(number)
                if found is not None:
                    loss_sum, known = loss_sum + found.item(), 1.0
            return mean_loss(self.groups.gather_numbers([known, loss_sum]), self.plan, num_targets)


def open_validation(deployment: Deployment, parts: Parts, built: Built, data: Mixture | None) -> Validation | None:
    """What the deployment asks for; None if it asks for nothing. Every rank calls this.

    Raises:
        UsageError: the documents that are kept apart do not fill the batches of one validation.
    """
    workload, groups = deployment.workload, parts.groups
    if workload.validate_every is None or data is None:
        return None
    plan = validation_plan(parts.plan)
    batches = replace(parts.batches, source=data)
    _refuse_too_few(batches, workload.validation_batches)
    executor = Executor(
        parse_actions(plan.actions[groups.place.pp]),
        build_stages(plan, groups.place.pp, built.units),
        plan.stage_to_rank,
        groups,
        loss_scale=0.0,
        recorder=_Notes(parts.recorder),
        lookups=build_lookups(plan, built.units, groups),
    )
    return Validation(
        workload.validate_every, workload.steps, workload.validation_batches, executor, batches, built.units, groups,
        plan,
    )  # fmt: skip


def _refuse_too_few(batches: Batches, count: int) -> None:
    """No sample may be seen twice in one validation."""
    wanted = count * batches.global_batch_size
    short = batches.repeats_within(wanted)
    if short is not None:
        name, held, needed = short
        raise UsageError(
            f"{name}: has {held} samples of {batches.sequence_length} tokens to validate with, and {needed} are to be "
            f"drawn from it ([workload] validation_batches = {count}); lower that, or keep more documents apart"
        )


class _Notes:
    """A recorder that measures nothing, and passes on which action is next."""

    def __init__(self, recorder: NullRecorder) -> None:
        self._recorder = recorder

    def span(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def change_span(self, name: str) -> None:
        """There are no spans."""

    def note(self, name: str) -> None:
        self._recorder.note(f"validation {name}")


@contextmanager
def _undisturbed(groups: Groups, units: Mapping[str, nn.Module]) -> Iterator[None]:
    """Waits are not recorded, and modules behave as in use; afterwards both are as they were."""
    clock = groups.clocks.current
    training = [module for unit in units.values() for module in unit.modules() if module.training]
    groups.clocks.current = NoClock()
    for module in training:
        module.training = False
    try:
        yield
    finally:
        groups.clocks.current = clock
        for module in training:
            module.training = True
