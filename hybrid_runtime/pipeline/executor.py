"""Walks one rank's action list. One loop for every schedule; all decisions were taken when the list was made.

    0F0     take the input (a receive, a local hand-over, or the tokens), run the stage, keep the output for its SEND
    0SEND_F0, 0SEND_B0     start sending what the action before it produced; completed sends are dropped as we go
    1RECV_F0, 1RECV_B0     announce a receive; the wait happens where the tensors are needed, and is recorded as a wait
    1B0     take the gradient of the output (a receive, a local hand-over, or the loss scale), run the backward
    1I0     the same, but the products of weight gradients are left in the rank's queue
    1W0     work off what 1I0 left there
    1EF0, 1EB0     of a sharded embedding: look up and start a sum; take the sum's gradient (`lookups.py`)

A receive buffer returns to its pool as soon as nothing reads it any more: usually after I or B; after W where the first
layer of a stage reads its input itself, or the last one its output's gradient.

Losses are kept by microbatch index, so the last stage may run its forwards in any order. There is no device
synchronisation here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.comm.point_to_point import Receiver, Sender, TensorSpec, spec_of
from hybrid_runtime.comm.under_way import Ledger
from hybrid_runtime.errors import HybridRuntimeError, RunError
from hybrid_runtime.models.unit import Carry, Microbatch
from hybrid_runtime.pipeline.lookups import Lookups
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.schedule.actions import Action, Kind
from hybrid_runtime.tensor_parallel.stopwatch import stopwatch_for
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue


class SpanRecorder(Protocol):
    """Who measures what the executor does."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """Encloses one compute action."""

    def change_span(self, name: str) -> None:
        """Inside a span: what is done from here on belongs to this action."""

    def note(self, name: str) -> None:
        """Says which action is next, for whoever asks what a stuck or killed rank was doing."""


class StepLedger(Ledger, Protocol):
    """Who counts a rank's bytes."""

    def keep(self, tensor: Tensor) -> object:
        """The tensor is an activation for as long as the result lives."""


class Executor:
    """One rank's executor.

    Args:
        actions: the rank's lowered list; torch's data-parallel actions in it are skipped.
        stages: the rank's stages by global index.
        stage_to_rank: pp rank of every stage of the pipeline.
        loss_scale: what the sum of token losses is multiplied by where a step says nothing else.
        recorder: measures every compute action.
        ledger: counts the bytes of communication buffers and of what waits for weight gradients; None counts nothing.
        lookups: of a rank that takes part in a sharded embedding, as `build_lookups` makes them; None elsewhere.

    Attributes:
        weight_queue: what waits between I and W.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        stages: Mapping[int, Stage],
        stage_to_rank: Sequence[int],
        groups: Groups,
        *,
        loss_scale: float,
        recorder: SpanRecorder,
        ledger: StepLedger | None = None,
        lookups: Lookups | None = None,
    ) -> None:
        self._actions = tuple(action for action in actions if not action.kind.is_data_parallel)
        self._names = tuple(map(str, self._actions))
        self._stages = dict(stages)
        self._stage_to_rank = tuple(stage_to_rank)
        self._last_stage = len(stage_to_rank) - 1
        self._groups = groups
        self._recorder = recorder
        self._loss_gradient = torch.tensor(loss_scale, device=groups.device)
        me = groups.place.pp
        self._senders = {
            edge.target_pp: Sender(edge, groups.device, ledger)
            for edge in groups.edges.values()
            if edge.source_pp == me
        }
        self._receivers = {
            edge.source_pp: Receiver(edge, groups.device, groups.clocks, ledger)
            for edge in groups.edges.values()
            if edge.target_pp == me
        }
        self._run: dict[Kind, Callable[[Action, str], None]] = {
            Kind.F: self._forward,
            Kind.B: self._backward,
            Kind.I: self._backward,
            Kind.W: self._weight_gradient,
            Kind.SEND_F: self._send,
            Kind.SEND_B: self._send,
            Kind.RECV_F: self._announce,
            Kind.RECV_B: self._announce,
            Kind.EF: self._look_up,
            Kind.EB: self._row_gradient,
        }
        self._lookups = lookups
        self.weight_queue = WeightQueue(
            fills=groups.tp.size > 1,
            keep=None if ledger is None else ledger.keep,
            change_span=recorder.change_span,
            stopwatch=stopwatch_for(groups.device),
        )
        if any(action.kind is Kind.I for action in self._actions):
            for stage in self._stages.values():
                stage.use_queue(self.weight_queue)
        self._microbatches: Sequence[Microbatch] = ()
        self._step: int | None = None
        self._outputs: dict[Action, Carry] = {}  # produced, not yet sent or handed over
        self._received: dict[Action, Carry] = {}  # input buffers held until the backward is done
        self._until_w: list[tuple[Receiver, Carry]] = []  # buffers that waiting weight gradients read
        self._losses: dict[int, Tensor] = {}

    def expect(self, stage: int, spec: Sequence[TensorSpec]) -> None:
        """What a stage's input looks like is known before its first message, which then comes without a header.

        For a rank that runs alone: its neighbours send nothing that could tell.
        """
        if stage > 0 and not self._is_here(stage - 1):
            self._receivers[self._stage_to_rank[stage - 1]].know(stage, Kind.RECV_F, tuple(spec))

    def run_step(
        self, microbatches: Sequence[Microbatch], step: int | None = None, *, loss_scale: float | None = None
    ) -> Tensor | None:
        """Walks the list once.

        Args:
            microbatches: this replica's microbatches, in order.
            step: its number, for messages only.
            loss_scale: 1 / targets of the global batch.

        Returns:
            The sum of token losses over the microbatches (a scalar on the device) on ranks that hold the last stage;
            None elsewhere and when there were no targets.

        Raises:
            RunError: an action failed; the message names rank, stage, step, action and unit.
        """
        self._microbatches, self._step = microbatches, step
        self._losses.clear()
        if loss_scale is not None:
            self._loss_gradient.fill_(loss_scale)
        for action, name in zip(self._actions, self._names):
            self._recorder.note(name)
            try:
                self._run[action.kind](action, name)
            except HybridRuntimeError as problem:
                raise RunError(f"{self._where(action)}: {problem}") from problem
            except Exception as problem:
                raise RunError(f"{self._where(action)}: {type(problem).__name__}: {problem}") from problem
            self._poll()
        self._recorder.note("last sends")
        for sender in self._senders.values():
            sender.finish()
        if self._lookups is not None:
            self._lookups.finish()
        assert not self._outputs, f"never sent or used: {list(self._outputs)}"
        assert not self.weight_queue, f"{len(self.weight_queue)} weight gradients were never computed"
        return torch.stack([self._losses[i] for i in sorted(self._losses)]).sum() if self._losses else None

    def _poll(self) -> None:
        """Drops what has been sent meanwhile."""
        for sender in self._senders.values():
            sender.poll()
        if self._lookups is not None:
            self._lookups.poll()

    def _where(self, action: Action) -> str:
        unit = self._stages[action.stage].current_unit if action.stage in self._stages else None
        if action.kind.is_lookup and self._lookups is not None:
            unit = self._lookups.current_unit
        step = "" if self._step is None else f"step {self._step}, "
        return f"{self._groups.place}, stage {action.stage}, {step}{action}" + (f", unit {unit}" if unit else "")

    def _forward(self, action: Action, name: str) -> None:
        stage, i = action.stage, action.microbatch
        carry = self._input_of(stage, i)
        with self._recorder.span(name):
            output = self._stages[stage].forward(i, carry, self._microbatches[i])
        if stage == 0 and self._lookups is not None:
            self._lookups.let_go(i)
        if not self._stages[stage].training:
            self._give_back_input(stage, i, output)
        if stage == self._last_stage:
            self._keep_loss(i, output)
            return
        self._outputs[Action(stage, Kind.F, i)] = output
        if not self._is_here(stage + 1):
            receiver = self._receivers.get(self._stage_to_rank[stage + 1])
            if receiver is not None:
                receiver.know(stage, Kind.RECV_B, _gradient_spec(output))

    def _backward(self, action: Action, name: str) -> None:
        """B and I."""
        stage, i = action.stage, action.microbatch
        gradients = self._output_gradients_of(stage, i)
        run = self._stages[stage].backward if action.kind is Kind.B else self._stages[stage].input_gradient
        with self._recorder.span(name):
            input_gradients = run(i, gradients)
        self._give_back_input(stage, i, input_gradients)
        if stage < self._last_stage and not self._is_here(stage + 1):
            self._give_back(self._receivers[self._stage_to_rank[stage + 1]], gradients, input_gradients)
        if stage > 0 or self._lookups is not None:
            self._outputs[Action(stage, Kind.B, i)] = input_gradients

    def _look_up(self, action: Action, name: str) -> None:
        """EF."""
        assert self._lookups is not None, "a lookup on a rank without rows"
        with self._recorder.span(name):
            self._lookups.look_up(action.microbatch, self._microbatches[action.microbatch])

    def _row_gradient(self, action: Action, name: str) -> None:
        """EB."""
        assert self._lookups is not None, "a gradient of rows on a rank without rows"
        i = action.microbatch
        if action.stage == 0:
            (gradient,) = self._outputs.pop(Action(0, Kind.B, i))
            self._lookups.send_gradient(gradient)
            with self._recorder.span(name):
                self._lookups.add_gradient(i, gradient)
            return
        buffers = self._lookups.take_gradient(name)
        with self._recorder.span(name):
            self._lookups.add_gradient(i, buffers[0])
        self._lookups.give_back(buffers)

    def _weight_gradient(self, action: Action, name: str) -> None:
        with self._recorder.span(name):
            self._stages[action.stage].weight_gradient(action.microbatch)
        if self._until_w:
            read = [self.weight_queue.holds(buffers) for _, buffers in self._until_w]
            for (receiver, buffers), still in zip(self._until_w, read):
                if not still:
                    receiver.give_back(buffers)
            self._until_w = [kept for kept, still in zip(self._until_w, read) if still]

    def _send(self, action: Action, name: str) -> None:
        forward = action.kind is Kind.SEND_F
        produced = Action(action.stage, Kind.F if forward else Kind.B, action.microbatch)
        target = self._stage_to_rank[action.stage + (1 if forward else -1)]
        self._senders[target].send(action, self._outputs.pop(produced))

    def _announce(self, action: Action, name: str) -> None:
        neighbour = action.stage + (-1 if action.kind is Kind.RECV_F else 1)
        self._receivers[self._stage_to_rank[neighbour]].announce(action)

    def _input_of(self, stage: int, i: int) -> Carry:
        if stage == 0:
            return () if self._lookups is None else self._lookups.take(i, str(Action(0, Kind.EF, i)))
        if self._is_here(stage - 1):
            return self._outputs.pop(Action(stage - 1, Kind.F, i))
        receive = Action(stage, Kind.RECV_F, i)
        receiver = self._receivers[self._stage_to_rank[stage - 1]]
        carry = self._received[receive] = receiver.take(receive)
        return carry

    def _give_back_input(self, stage: int, i: int, still_in_use: Carry) -> None:
        buffers = self._received.pop(Action(stage, Kind.RECV_F, i), None)
        if buffers is not None:
            self._give_back(self._receivers[self._stage_to_rank[stage - 1]], buffers, still_in_use)

    def _give_back(self, receiver: Receiver, buffers: Carry, still_in_use: Carry) -> None:
        """Returns buffers to their pool: now, after the last W that reads them, or never if a unit passed them on."""
        if _share_storage(buffers, still_in_use):
            receiver.abandon(buffers)
        elif self.weight_queue and self.weight_queue.holds(buffers):
            self._until_w.append((receiver, buffers))
        else:
            receiver.give_back(buffers)

    def _output_gradients_of(self, stage: int, i: int) -> Carry:
        if stage == self._last_stage:
            return (self._loss_gradient,)
        if self._is_here(stage + 1):
            return self._outputs.pop(Action(stage + 1, Kind.B, i))
        return self._receivers[self._stage_to_rank[stage + 1]].take(Action(stage, Kind.RECV_B, i))

    def _is_here(self, stage: int) -> bool:
        return stage in self._stages

    def _keep_loss(self, i: int, output: Carry) -> None:
        if self._microbatches[i].targets is None:
            return
        if len(output) != 1 or output[0].dim() != 0:
            raise RunError(f"the last unit must return the sum of token losses as one scalar, not {spec_of(output)}")
        self._losses[i] = output[0].detach()


def _gradient_spec(output: Carry) -> tuple[TensorSpec, ...]:
    return spec_of([tensor for tensor in output if tensor.is_floating_point()])


def _share_storage(one: Carry, other: Carry) -> bool:
    """A unit that passes a tensor through hands a buffer on; such a buffer must not return to its pool."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in one}
    return any(tensor.untyped_storage().data_ptr() in storages for tensor in other)
