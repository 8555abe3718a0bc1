from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import backward
from torch.utils.checkpoint import checkpoint

from hybrid_runtime.telemetry.ledger import ByteLedger, Peaks, storage_bytes

FLOAT = 4


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * gradients[0]


class Recompute(torch.autograd.Function):
    """Saves its input only and makes exp(x) again in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp().exp()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            again = x.exp().exp()  # saves both results
        return torch.autograd.grad(again, x, gradients[0])[0]


def ledger_of(*modules: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> ByteLedger:
    return ByteLedger([parameter for module in modules for parameter in module.parameters()], optimizer)


def leaf(elements: int = 100) -> Tensor:
    return torch.ones(elements, requires_grad=True)


def test_storages_count_once() -> None:
    whole = torch.zeros(100)
    assert storage_bytes([whole, whole[:10], whole.view(10, 10).t()]) == 400
    assert storage_bytes([whole[:1], torch.zeros(3, dtype=torch.int64)]) == 400 + 24
    assert storage_bytes([]) == 0


def test_saved_until_the_backward_frees_it() -> None:
    ledger = ByteLedger(())
    with ledger.watching():
        y = leaf().exp()  # saves its result
        z = y.exp()
        assert ledger.in_use.activations == 2 * 100 * FLOAT
        backward(z.sum())
        assert ledger.in_use == Peaks(0, 0, 0)
    assert ledger.peaks == Peaks(800, 0, 800)
    with ledger.watching():
        assert ledger.peaks == Peaks(0, 0, 0)


def test_dropping_the_graph_frees_too_and_retaining_it_does_not() -> None:
    ledger = ByteLedger(())
    with ledger.watching():
        y = leaf().exp()  # saves its own result: no cycle may come of it
        backward(y.sum(), retain_graph=True)
        assert ledger.in_use.activations == 400
        del y
        assert ledger.in_use.activations == 0


def test_gradients_of_gradients_still_work() -> None:
    x = leaf()
    with ByteLedger(()).watching():
        (first,) = torch.autograd.grad(x.exp().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, x.detach().exp())


def test_views_of_a_storage_count_once_and_whole() -> None:
    ledger = ByteLedger(())
    with ledger.watching():
        x = leaf().view(10, 10)
        a, b = x[:5], x[5:]
        y = (a * b).sum() + (x * x).sum()
        assert ledger.in_use.activations == 400
        backward(y)
    assert ledger.peaks.activations == 400


def test_an_in_place_change_keeps_the_storage() -> None:
    ledger = ByteLedger(())
    with ledger.watching():
        y = leaf() * 2
        z = y.relu_()  # saves its result, which is y's storage
        w = z.exp()
        assert ledger.in_use.activations == 800
        backward(w.sum())
        assert ledger.in_use.activations == 0


def test_parameters_their_views_and_ties_are_not_activations() -> None:
    first, second = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    second.weight = first.weight
    ledger = ledger_of(first, second)
    with ledger.watching():
        x = torch.ones(3, 10)
        y = second(first(x)).sum() + (first.weight.view(100)[:50] * x.view(30)[:1]).sum()
        assert ledger.in_use.activations == 2 * 30 * FLOAT  # x and first(x), no weight
        backward(y)
        assert ledger.in_use.activations == 0
    memory = ledger.memory(watched=True)
    assert (memory.parameters, memory.gradients, memory.optimizer) == (400, 400, 0)
    assert memory.ledger_peak == 800 + 240


def test_a_function_that_saves_for_its_backward() -> None:
    ledger = ByteLedger(())
    with ledger.watching():
        x = leaf()
        y = Square.apply(x)  # type: ignore[no-untyped-call]
        assert ledger.in_use.activations == 400
        backward(y.sum())
        assert ledger.in_use.activations == 0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((100,), 2.0))


def test_recomputed_activations_are_seen_in_the_backward() -> None:
    ledger = ByteLedger(())
    with ledger.watching():
        y = Recompute.apply(leaf() * 0.5)  # type: ignore[no-untyped-call]
        assert ledger.in_use.activations == 400
        backward(y.sum())
        assert ledger.in_use.activations == 0
    assert ledger.peaks.activations == 3 * 400  # its input, and the two recomputed results


def test_torchs_checkpoint_keeps_inputs_and_gives_right_gradients() -> None:
    def body(x: Tensor) -> Tensor:
        return x.sin().sin().sin()

    plain, kept = leaf(), leaf()
    backward(body(plain).sum())
    ledger = ByteLedger(())
    with ledger.watching():
        y = checkpoint(body, kept, use_reentrant=False)
        assert ledger.in_use.activations == 400
        backward(y.sum())
        del y
        assert ledger.in_use.activations == 0
    assert plain.grad is not None
    assert kept.grad is not None
    assert torch.equal(plain.grad, kept.grad)


def test_a_buffer_that_is_also_saved_counts_once_in_the_sum() -> None:
    ledger = ByteLedger(())
    buffer = torch.ones(100)
    ledger.hold(buffer)  # pools may be filled before anybody watches
    with ledger.watching():
        assert ledger.peaks == Peaks(0, 400, 400)
        x = buffer.requires_grad_()
        y = x.square()  # saves the receive buffer
        other = torch.ones(50)
        ledger.hold(other)
        assert ledger.in_use == Peaks(400, 600, 600)
        ledger.release(other)
        ledger.release(buffer)
        assert ledger.in_use == Peaks(400, 0, 400)
        backward(y.sum())
        assert ledger.in_use == Peaks(0, 0, 0)
    assert ledger.peaks == Peaks(400, 600, 600)


def test_a_buffer_held_twice_is_released_twice() -> None:
    ledger = ByteLedger(())
    buffer, empty = torch.ones(10), torch.ones(0)
    ledger.hold(buffer)
    ledger.hold(buffer[:5])
    ledger.release(buffer)
    assert ledger.in_use.buffers == 40
    ledger.release(buffer)
    assert ledger.in_use.buffers == 0
    with pytest.raises(AssertionError, match="never held"):
        ledger.release(buffer)
    ledger.hold(empty)
    ledger.release(empty)


def test_the_same_program_gives_the_same_bytes() -> None:
    def memory() -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))
        optimizer = torch.optim.AdamW(model.parameters())
        ledger = ledger_of(model, optimizer=optimizer)
        with ledger.watching():
            for _ in range(3):
                backward(model(torch.randn(8, 16)).logsumexp(-1).sum())
        optimizer.step()
        return ledger.memory(watched=True)

    first = memory()
    assert first == memory()
    count = 16 * 32 + 32 + 32 + 32 + 32 * 4 + 4
    assert first.parameters == first.gradients == count * FLOAT
    assert first.optimizer == 2 * count * FLOAT + 6 * FLOAT  # two moments, and a step count per parameter
    assert first.activations_peak > 8 * (16 + 32 + 32 + 4) * FLOAT


def test_results_are_the_same_with_and_without_watching() -> None:
    def gradient(watch: bool) -> Tensor:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 1))
        ledger = ledger_of(model)
        if watch:
            with ledger.watching():
                backward(model(torch.randn(3, 5)).sum())
        else:
            backward(model(torch.randn(3, 5)).sum())
        grad = next(model.parameters()).grad
        assert grad is not None
        return grad

    assert torch.equal(gradient(True), gradient(False))
