"""Where numbers stopped being finite: a step's actions repeated, with a look at what goes into each unit and comes out.

    F   finite carry -> unit -> inf or nan          the unit's output
    B   finite gradient of its output -> unit -> gradient of its input, or of a parameter, not finite

What is not finite spreads to every later unit, so only a unit that had finite numbers to work with is to blame. A unit
that spans tensor-parallel ranks spreads it to all of them: the one whose parameters are not finite is blamed first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybrid_runtime.mesh import Place
from hybrid_runtime.schedule.actions import Action, Kind


class Blame(NamedTuple):
    """A unit that made numbers which are not finite out of numbers that were; the smallest one was the first.

    Attributes:
        is_backward, microbatch, depth: their order; `depth` counts units along the way, forth or back.
        parameters_finite: False before True: the cause lies in the parameters, on this rank.
        what: what is not finite, in words.
    """

    is_backward: bool
    microbatch: int
    depth: int
    parameters_finite: bool
    rank: int
    action: str
    unit: str
    what: str


class Inspection:
    """`with Inspection(...) as looks: executor.run_step(microbatches, step, watcher=looks)`.

    Args:
        units: the rank's units by name.
        order: names of all units and pieces of the model, in model order.
        stage_units: by global index of the rank's stages, the names of their units.

    Attributes:
        found: in the order of this rank's list.
    """

    def __init__(
        self,
        units: Mapping[str, nn.Module],
        order: Sequence[str],
        stage_units: Mapping[int, Sequence[str]],
        place: Place,
    ) -> None:
        self._units = units
        self._depth = {name: k for k, name in enumerate(order)}
        self._stage_units = stage_units
        self._stage_of = {name: stage for stage, names in stage_units.items() for name in names}
        self._place = place
        self._reached: set[tuple[str, int]] = set()  # units whose output's gradient was not finite
        self._spoilt: set[str] = set()  # units of which a parameter's gradient is not finite
        self._hooks = ExitStack()
        self.found: list[Blame] = []
        self.microbatch = -1

    def __enter__(self) -> Inspection:
        for name, unit in self._units.items():
            handle = unit.register_forward_hook(partial(self._after_forward, name))
            self._hooks.callback(handle.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def before_action(self, action: Action) -> None:
        """The executor is about to do this."""
        self.microbatch = action.microbatch

    def after_action(self, action: Action) -> None:
        """The executor has done this: gradients of parameters that are not finite now were before."""
        if action.kind not in (Kind.B, Kind.I, Kind.W, Kind.EB):
            return
        for name in self._units if action.kind is Kind.EB else self._stage_units[action.stage]:
            bad = self._bad_gradient(name)
            if bad is None or name in self._spoilt:
                continue
            self._spoilt.add(name)
            if (name, action.microbatch) not in self._reached:
                self._blame(name, action.microbatch, f"the gradient of its parameter {bad}", backward=True)

    def _after_forward(self, name: str, unit: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        carry, i = inputs[0], self.microbatch
        came_in = [tensor for tensor in carry if tensor.is_floating_point()]
        goes_out = [tensor for tensor in output if isinstance(tensor, Tensor) and tensor.is_floating_point()]
        if all(map(_is_finite, came_in)) and not all(map(_is_finite, goes_out)):
            self._blame(name, i, "its output", backward=False)
        for tensor in goes_out:
            if tensor.requires_grad:
                _call_with_gradient(tensor, partial(self._output_gradient, name, i))
        for tensor in came_in:
            if tensor.requires_grad:
                _call_with_gradient(tensor, partial(self._input_gradient, name, i))

    def _output_gradient(self, name: str, i: int, gradient: Tensor) -> None:
        if not _is_finite(gradient):
            self._reached.add((name, i))

    def _input_gradient(self, name: str, i: int, gradient: Tensor) -> None:
        if (name, i) not in self._reached and not _is_finite(gradient):
            self._reached.add((name, i))
            self._blame(name, i, "the gradient of its input", backward=True)

    def _blame(self, name: str, i: int, what: str, *, backward: bool) -> None:
        depth = self._depth.get(name, 0)
        wrong = [own for own, parameter in self._units[name].named_parameters() if not _is_finite(parameter)]
        cause = f" (and its parameter {wrong[0]} was not either)" if wrong else ""
        self.found.append(
            Blame(
                is_backward=backward,
                microbatch=i,
                depth=-depth if backward else depth,
                parameters_finite=not wrong,
                rank=self._place.rank,
                action=f"{self._stage_of.get(name, 0)}{'B' if backward else 'F'}{i}",
                unit=name,
                what=f"{what} is not finite{cause}",
            )
        )

    def _bad_gradient(self, name: str) -> str | None:
        for own, parameter in self._units[name].named_parameters():
            if parameter.grad is not None and not _is_finite(parameter.grad):
                return own
        return None


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _call_with_gradient(tensor: Tensor, look: Callable[[Tensor], None]) -> None:
    tensor.register_hook(look)  # type: ignore[no-untyped-call]
