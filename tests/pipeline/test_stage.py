from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybrid_runtime.errors import RunError
from hybrid_runtime.models.unit import Carry, Microbatch
from hybrid_runtime.pipeline.stage import Stage

NO_TOKENS = Microbatch(torch.zeros(1, 1, dtype=torch.int64))


class Double(nn.Module):
    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return (carry[0] * 2, *carry[1:])


class Bad(nn.Module):
    def forward(self, carry: Carry, microbatch: Microbatch) -> Tensor:
        return carry[0]


def stage(*units: nn.Module, training: bool = True) -> Stage:
    return Stage(1, [(f"{k}.unit", unit) for k, unit in enumerate(units)], training=training)


def test_backward_gives_the_gradient_of_the_input_in_any_order() -> None:
    one = stage(Double(), Double())
    for i in range(3):
        (output,) = one.forward(i, (torch.full((2,), float(i)),), NO_TOKENS)
        assert output.tolist() == [4 * i] * 2
    assert one.in_flight == 3
    for i in (2, 0, 1):
        assert one.backward(i, (torch.full((2,), float(i)),))[0].tolist() == [4 * i] * 2
    assert one.in_flight == 0


def test_integers_in_the_carry_travel_without_a_gradient() -> None:
    one = stage(Double())
    output = one.forward(0, (torch.ones(2), torch.arange(3)), NO_TOKENS)
    assert output[1].tolist() == [0, 1, 2]
    assert [g.tolist() for g in one.backward(0, (torch.ones(2),))] == [[2, 2]]


def test_an_output_that_needs_no_gradient_swallows_its_own() -> None:
    class Constant(nn.Module):
        def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
            return carry[0] * 3, torch.ones(1)

    one = stage(Constant())
    one.forward(0, (torch.ones(1),), NO_TOKENS)
    assert one.backward(0, (torch.ones(1), torch.full((1,), 9.0)))[0].item() == 3


def test_an_unused_input_has_a_zero_gradient() -> None:
    class First(nn.Module):
        def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
            return (carry[0] * 1,)

    one = stage(First())
    one.forward(0, (torch.ones(1), torch.ones(2)), NO_TOKENS)
    assert [g.tolist() for g in one.backward(0, (torch.ones(1),))] == [[1], [0, 0]]


def test_forward_only_keeps_nothing() -> None:
    one = stage(Double(), training=False)
    (output,) = one.forward(0, (torch.ones(1),), NO_TOKENS)
    assert not output.requires_grad
    assert one.in_flight == 0


def test_a_unit_that_returns_no_tuple_is_named() -> None:
    one = stage(Double(), Bad())
    with pytest.raises(RunError, match=r"unit '1.unit' returned Tensor; a unit returns a tuple of tensors"):
        one.forward(0, (torch.ones(1),), NO_TOKENS)


def test_outputs_are_not_kept_alive_by_the_stage() -> None:
    import weakref

    one = stage(Double())
    (output,) = one.forward(0, (torch.ones(4),), NO_TOKENS)
    alive = weakref.ref(output)
    del output
    assert alive() is None
    assert one.backward(0, (torch.ones(4),))[0].tolist() == [2] * 4
