"""One pipeline stage: a slice of the model's units, with what each microbatch in flight needs for its backward.

    F   forward   ->  B   backward(...)
                  ->  I   input_gradient(...)   the same traversal, but the parallel linears leave their dW in the queue
                      W   weight_gradient(...)  works off what that I left; nothing where a unit has no such layers

Outputs are not kept: only their autograd edges are, so an activation that has been sent costs nothing more here.

A stage may forget what its units computed and compute it again in B or I (recompute.py). Units that can forget parts of
themselves are told to (`set_recompute`); others, with "full", are run whole a second time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hybrid_runtime.errors import RunError
from hybrid_runtime.models.unit import Carry, Microbatch
from hybrid_runtime.tensor_parallel.recompute import Recompute, forget, set_recompute
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue, set_weight_queue


class _InFlight(NamedTuple):
    inputs: Carry  # leaves that collect the gradient of the stage's input
    outputs: tuple[GradientEdge | None, ...]  # one per floating-point output; None if it needs no gradient


class Stage:
    """Runs F, B, I and W of one stage.

    Args:
        index: global stage index.
        units: (name, module) in model order.
        training: False runs forwards only and keeps nothing for a backward.
    """

    def __init__(self, index: int, units: Sequence[tuple[str, nn.Module]], *, training: bool) -> None:
        self.index = index
        self.units = tuple(units)
        self.training = training
        self._in_flight: dict[int, _InFlight] = {}
        self.current_unit: str | None = None
        self._again: dict[str, Recompute] = {}
        self._queue: WeightQueue | None = None

    def use_queue(self, queue: WeightQueue) -> None:
        """Where the stage's layers leave their weight gradients in an I; the queue of all stages of the rank."""
        self._queue = queue
        for _, unit in self.units:
            set_weight_queue(unit, queue)

    def recompute(self, recompute: Recompute, units: Collection[str]) -> None:
        """What the given units of the stage forget between F and their backward."""
        self._again = {
            name: recompute
            for name, unit in self.units
            if name in units and not set_recompute(unit, recompute) and recompute.kind == "full"
        }

    def forward(self, index: int, carry: Carry, microbatch: Microbatch) -> Carry:
        """F of microbatch `index`; `carry` is the previous stage's output (empty for the first stage).

        Returns:
            The stage's output, detached from nothing: send it and let it go.

        Raises:
            RunError: a unit returned something else than a tuple of tensors.
        """
        inputs = tuple(tensor.detach().requires_grad_(self.training and tensor.is_floating_point()) for tensor in carry)
        with self._grad_mode():
            output = inputs
            for name, unit in self.units:
                self.current_unit = name
                output = self._run(name, unit, output, microbatch)
                if not isinstance(output, tuple) or not all(isinstance(tensor, Tensor) for tensor in output):
                    raise RunError(f"unit {name!r} returned {type(output).__name__}; a unit returns a tuple of tensors")
        self.current_unit = None
        if self.training:
            edges = (get_gradient_edge(y) if y.requires_grad else None for y in output if y.is_floating_point())
            self._in_flight[index] = _InFlight(inputs, tuple(edges))
        return output

    def _run(self, name: str, unit: nn.Module, carry: Carry, microbatch: Microbatch) -> Carry:
        recompute = self._again.get(name)
        if recompute is None or not self.training:
            output: Carry = unit(carry, microbatch)
            return output
        buffers = [(buffer, buffer._version) for buffer in unit.buffers()]
        output, _ = forget(lambda *x: unit(x, microbatch), carry, recompute.random)
        if any(now is not was or now._version != version for now, (was, version) in zip(unit.buffers(), buffers)):
            raise RunError(
                f"unit {name!r} changes a buffer in its forward and would do so twice; set pipeline.recompute of its "
                "stage to 'none', or 'selective'"
            )
        return output

    def backward(self, index: int, gradients: Sequence[Tensor]) -> Carry:
        """B of microbatch `index`: adds to the parameters' gradients.

        Args:
            gradients: of the stage's floating-point outputs, in order.

        Returns:
            Gradients of the stage's floating-point inputs, in order.
        """
        inputs, outputs = self._in_flight.pop(index)
        assert len(outputs) == len(gradients), (len(outputs), len(gradients))
        pairs = [(edge, gradient) for edge, gradient in zip(outputs, gradients) if edge is not None]
        torch.autograd.backward([edge for edge, _ in pairs], [gradient for _, gradient in pairs])
        return tuple(_gradient_of(leaf) for leaf in inputs if leaf.requires_grad)

    def input_gradient(self, index: int, gradients: Sequence[Tensor]) -> Carry:
        """I of microbatch `index`; arguments and result as of `backward`. Needs a queue."""
        assert self._queue is not None, "I without a queue"
        with self._queue.deferring(self.index, index):
            return self.backward(index, gradients)

    def weight_gradient(self, index: int) -> None:
        """W of microbatch `index`, after its I.

        Raises:
            RunError: a unit changed in place what the weight gradient still needs.
        """
        assert self._queue is not None, "W without a queue"
        self._queue.run(self.index, index)

    @property
    def in_flight(self) -> int:
        """Microbatches whose backward is still to come."""
        return len(self._in_flight)

    def _grad_mode(self) -> AbstractContextManager[None]:
        return torch.enable_grad() if self.training else torch.no_grad()


def _gradient_of(leaf: Tensor) -> Tensor:
    gradient = leaf.grad
    return torch.zeros_like(leaf) if gradient is None else gradient
