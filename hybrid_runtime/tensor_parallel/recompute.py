"""Results that are forgotten after F and computed again when their backward begins: time for memory.

    F   x --f--> h --product--> y        kept: x (and not h, nor anything inside f)
    I   dy: the product asks for h       h is computed again from x, now with its graph
        dh: back through that graph      bit for bit what it would have been; then all of it is let go

The function is run again in the same random states, and whatever it must sum over ranks is summed again. Whoever reads
a forgotten result in its own backward (a linear its input) is given an `Again` instead of keeping the tensor: so the
output of a unit's last product, which no gradient depends on, is not computed again, nor its sum over the ranks.

Methods: Chen et al. 2016 (arXiv 1604.06174); what is worth forgetting: Korthikanti et al. 2022 (arXiv 2205.05198,
section 5); results forgotten behind their reader's back: Megatron-Core's output-discarding checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.tensor_parallel.random_state import RandomStates, Snapshot

Function = Callable[..., tuple[Tensor, ...]]


class Recompute(NamedTuple):
    """What a unit forgets.

    Attributes:
        kind: "selective": what is cheap to compute and large; "full": all but its input.
        random: the rank's random states; None where nothing is drawn.
    """

    kind: RecomputeKind = "none"
    random: RandomStates | None = None


KEEP = Recompute()


class Again:
    """The results of a function of tensors, to be computed again from the same inputs.

    Args:
        function: of tensors only, and without side effects: it runs twice.
        random: whose states are as they were when it runs again.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], random: RandomStates | None = None) -> None:
        self._function = function
        self._inputs = tuple(tensor.detach() for tensor in inputs)
        self._need = tuple(tensor.requires_grad for tensor in inputs)
        self._random = random
        self._states: Snapshot | None = None
        self._leaves: tuple[Tensor, ...] = ()
        self._results: tuple[Tensor, ...] | None = None
        self._held: list[Tensor] = []

    def first(self) -> tuple[Tensor, ...]:
        """The first run, of which nothing is kept but the inputs; without a graph."""
        before = None if self._random is None else self._random.snapshot()
        results = self._function(*self._inputs)
        if self._random is not None and before is not None and not _equal(before, self._random.snapshot()):
            self._states = before
        return results

    def result(self, number: int = 0) -> Tensor:
        """One of the results, computed again if this is the first question; counted as saved until `backward`."""
        found = self._computed()[number]
        with torch.enable_grad():
            self._held.append(_Held.apply(found))  # type: ignore[no-untyped-call]
        return found.detach()

    def backward(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs from those of the results; everything is let go.

        Parameters inside the function get theirs as in any backward, or leave them in the weight queue.
        """
        pairs = [(y, dy) for y, dy in zip(self._computed(), gradients) if dy is not None and y.requires_grad]
        leaves, self._leaves, self._results, self._inputs = self._leaves, (), None, ()
        self._held.clear()
        torch.autograd.backward([y for y, _ in pairs], [dy for _, dy in pairs])
        return tuple(leaf.grad if need else None for leaf, need in zip(leaves, self._need))

    def _computed(self) -> tuple[Tensor, ...]:
        if self._results is None:
            self._leaves = tuple(x.detach().requires_grad_(need) for x, need in zip(self._inputs, self._need))
            with torch.enable_grad(), self._same_states():
                self._results = self._function(*self._leaves)
        return self._results

    def _same_states(self) -> AbstractContextManager[None]:
        return self._random.replaying(self._states) if self._random is not None and self._states else nullcontext()


def forget(
    function: Function, inputs: Sequence[Tensor], random: RandomStates | None = None
) -> tuple[tuple[Tensor, ...], Again]:
    """Results of a function whose inside is forgotten, and what computes them again for a reader that forgot them too.

    Readers must be all later in the graph than the results, as they are if they read nothing else of the function.
    """
    again = Again(function, inputs, random)
    return _Forgotten.apply(again, *inputs), again  # type: ignore[no-untyped-call]


def set_recompute(module: nn.Module, recompute: Recompute) -> bool:
    """Tells every unit inside `module` that can forget parts of itself what to forget; says whether there is one."""
    able = [layer for layer in module.modules() if isinstance(getattr(layer, "recompute", None), Recompute)]
    for layer in able:
        setattr(layer, "recompute", recompute)  # noqa: B010 - a plain attribute of any of the units
    return bool(able)


class _Forgotten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, again: Again, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.again = again
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        results = again.first()
        ctx.mark_non_differentiable(*(y for y in results if not y.is_floating_point()))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.saved_tensors  # noqa: B018 - autograd refuses here if an input was written to since
        return None, *ctx.again.backward(gradients)


class _Held(torch.autograd.Function):
    """Makes a tensor count as saved for as long as the result lives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> None:
        raise AssertionError("nothing depends on it")


def _equal(one: Snapshot, other: Snapshot) -> bool:
    pairs = zip((*one.shared, *one.sharded), (*other.shared, *other.sharded))
    return all(torch.equal(a, b) for a, b in pairs)
