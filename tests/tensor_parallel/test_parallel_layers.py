"""Every collective and layer against plain single-rank arithmetic, on 2 and 4 ranks, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hybrid_runtime.comm.axis import Axis, WaitClock, axis_of
from hybrid_runtime.comm.collectives import (
    all_gather_stack,
    all_reduce,
    gather_sequence,
    reduce_scatter_sequence,
    sum_backward,
    sum_forward,
)
from hybrid_runtime.errors import PlanError, UsageError
from hybrid_runtime.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from hybrid_runtime.tensor_parallel.embedding import VocabParallelEmbedding
from hybrid_runtime.tensor_parallel.gradients import set_accumulate_in_place
from hybrid_runtime.tensor_parallel.initialise import Init
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear
from hybrid_runtime.tensor_parallel.random_state import ParallelDropout, RandomStates
from hybrid_runtime.tensor_parallel.shard import (
    ShardSpec,
    gather_full,
    iter_parameters,
    local_of,
    split_evenly,
    square_sum,
    sum_partial_gradients,
)
from tests.gradients import counted_gradients
from tests.ranks import run_ranks

B, S, H = 3, 8, 12


@pytest.mark.ranks
@pytest.mark.parametrize("size", [2, 4])
def test_collectives_and_layers(size: int) -> None:
    run_ranks(size, _everything)


def _everything(rank: int) -> None:
    torch.set_default_dtype(torch.float64)
    axis = axis_of(dist.group.WORLD)
    _collectives(axis)
    for sequence_parallel in (False, True):
        for in_place in (False, True):
            _column(axis, sequence_parallel, in_place)
            _row(axis, sequence_parallel, in_place)
            _embedding(axis, sequence_parallel, in_place)
    for vocab_size in (5, 16, 30):
        _cross_entropy(axis, vocab_size)
    _half_precision(axis)
    _refusals(axis)
    _random_states(axis)
    _reports_waits(axis)


def shared(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers on every rank."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def part_of_sequence(x: Tensor, axis: Axis) -> Tensor:
    return x.chunk(axis.size, 1)[axis.rank]


def _collectives(axis: Axis) -> None:
    ranks = [shared(B, S, H, seed=r) for r in range(axis.size)]
    mine, total = ranks[axis.rank], torch.stack(ranks).sum(0)
    torch.testing.assert_close(all_reduce(mine.clone(), axis), total)
    torch.testing.assert_close(all_reduce(mine.clone(), axis, dist.ReduceOp.MAX), torch.stack(ranks).amax(0))
    torch.testing.assert_close(all_gather_stack(mine.transpose(0, 1), axis), torch.stack(ranks).transpose(1, 2))
    whole, part = torch.cat(ranks, 1), part_of_sequence(total, axis)
    long_ranks = [shared(B, S * axis.size, H, seed=100 + r) for r in range(axis.size)]
    long_part = part_of_sequence(torch.stack(long_ranks).sum(0), axis)
    for function, output, dy, dx in (
        (sum_forward, total, mine, mine),
        (sum_backward, mine, mine, total),
        (gather_sequence, whole, long_ranks[axis.rank], long_part),
        (reduce_scatter_sequence, part, part, torch.cat(list(all_gather_stack(part, axis)), 1)),
    ):
        x = mine.clone().requires_grad_()
        y = function(x, axis)
        torch.testing.assert_close(y, output)
        torch.autograd.backward(y, dy)
        torch.testing.assert_close(x.grad, dx)


def _column(axis: Axis, sequence_parallel: bool, in_place: bool) -> None:
    """Fused outputs of 16, 4 and 4 (the last two on two neighbouring ranks each) with a bias."""
    sizes, replicas = (16, 4, 4), (1, 2, 2)
    layer = ColumnParallelLinear(
        H,
        sizes,
        axis,
        bias=True,
        replicas=replicas,
        sequence_parallel=sequence_parallel,
        init=Init(seed=5, unit="u", std=0.3),
    )
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.copy_(local_of(shared(24, seed=9), layer.shards["bias"]))
    weight = gather_full(layer.weight, layer.shards["weight"], axis).requires_grad_()
    bias = shared(24, seed=9).requires_grad_()
    x_full = shared(B, S, H, seed=1).requires_grad_()
    # The loss is the sum over ranks of that rank's outputs times that rank's coefficients.
    y_full = x_full @ weight.t() + bias
    parts, coefficients = [], []
    for r in range(axis.size):
        segments = split_evenly("size", sizes, Axis(axis.size, r), replicas)
        parts.append(torch.cat([y_full.narrow(2, s.start, s.length) for s in segments], 2))
        coefficients.append(shared(*parts[-1].shape, seed=50 + r))
    torch.autograd.backward(torch.stack([(y * c).sum() for y, c in zip(parts, coefficients)]).sum())

    x = (part_of_sequence(x_full, axis) if sequence_parallel else x_full).detach().clone().requires_grad_()
    set_accumulate_in_place(layer, in_place)
    for _ in range(2):  # gradients accumulate
        y = layer(x)
        torch.autograd.backward(y, coefficients[axis.rank])
    torch.testing.assert_close(y, parts[axis.rank])
    assert x_full.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    dx = part_of_sequence(x_full.grad, axis) if sequence_parallel else x_full.grad
    torch.testing.assert_close(x.grad, 2 * dx)
    _compare_gradients(layer, axis, {"weight": 2 * weight.grad, "bias": 2 * bias.grad})


def _row(axis: Axis, sequence_parallel: bool, in_place: bool) -> None:
    layer = RowParallelLinear(
        H, 10, axis, bias=True, sequence_parallel=sequence_parallel, init=Init(seed=6, unit="u", std=0.3)
    )
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.copy_(shared(10, seed=9))
    weight = gather_full(layer.weight, layer.shards["weight"], axis).requires_grad_()
    bias = shared(10, seed=9).requires_grad_()
    x_full = shared(B, S, H, seed=2).requires_grad_()
    dy = shared(B, S, 10, seed=3)
    y_full = x_full @ weight.t() + bias
    torch.autograd.backward(y_full, dy)

    x = x_full.detach().chunk(axis.size, 2)[axis.rank].clone().requires_grad_()
    set_accumulate_in_place(layer, in_place)
    y = layer(x)
    torch.autograd.backward(y, part_of_sequence(dy, axis) if sequence_parallel else dy)
    torch.testing.assert_close(y, part_of_sequence(y_full, axis) if sequence_parallel else y_full)
    assert x_full.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(x.grad, x_full.grad.chunk(axis.size, 2)[axis.rank])
    _compare_gradients(layer, axis, {"weight": weight.grad, "bias": bias.grad})


def _embedding(axis: Axis, sequence_parallel: bool, in_place: bool) -> None:
    vocab_size = 5  # on four ranks: the third holds one row of padding, the fourth nothing else
    layer = VocabParallelEmbedding(vocab_size, H, axis, sequence_parallel=sequence_parallel, init=Init(seed=7))
    weight = gather_full(layer.weight, layer.shards["weight"], axis).requires_grad_()
    tokens = torch.arange(B * S).view(B, S) % vocab_size
    dy = shared(B, S, H, seed=4)
    y_full = torch.nn.functional.embedding(tokens, weight)
    torch.autograd.backward(y_full, dy)
    set_accumulate_in_place(layer, in_place)
    y = layer(tokens)
    torch.autograd.backward(y, part_of_sequence(dy, axis) if sequence_parallel else dy)
    torch.testing.assert_close(y, part_of_sequence(y_full, axis) if sequence_parallel else y_full)
    assert weight.grad is not None
    _compare_gradients(layer, axis, {"weight": weight.grad})


def _compare_gradients(layer: torch.nn.Module, axis: Axis, expected: dict[str, Tensor]) -> None:
    sum_partial_gradients(layer, axis)
    named = list(iter_parameters(layer))
    assert {name for name, _, _ in named} == set(expected)
    for name, parameter, spec in named:
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, local_of(expected[name], spec))
        torch.testing.assert_close(gather_full(parameter.grad, spec, axis), expected[name])
    square = all_reduce(square_sum(counted_gradients(named, axis)), axis)
    torch.testing.assert_close(square, sum((g.square().sum() for g in expected.values()), torch.zeros(())))


def _cross_entropy(axis: Axis, vocab_size: int) -> None:
    columns = -(-vocab_size // axis.size)
    full = (shared(B, S, vocab_size, seed=8) * 5 - 300).requires_grad_()  # far from 0: exp would underflow
    targets = torch.arange(B * S).view(B, S) % vocab_size
    dy = shared(B, S, seed=11)
    expected = torch.nn.functional.cross_entropy(full.flatten(0, 1), targets.flatten(), reduction="none").view(B, S)
    torch.autograd.backward(expected, dy)
    spec = ShardSpec(
        global_shape=(B, S, vocab_size), dim=2, segments=split_evenly("v", [vocab_size], axis, padded=True)
    )
    for overwrite in (False, True):
        logits = local_of(full.detach(), spec)
        before = logits.clone()
        logits.requires_grad_()
        leaf = logits
        if overwrite:
            logits = logits * 1
        losses = vocab_parallel_cross_entropy(logits, targets, vocab_size, axis, overwrite_logits=overwrite)
        torch.testing.assert_close(losses, expected)
        torch.autograd.backward(losses, dy)
        assert leaf.grad is not None
        assert full.grad is not None
        assert leaf.grad.shape[2] == columns
        torch.testing.assert_close(leaf.grad, local_of(full.grad, spec))
        torch.testing.assert_close(leaf.detach(), before)


def _half_precision(axis: Axis) -> None:
    full = (shared(B, S, 16, seed=8) * 5).to(torch.bfloat16).requires_grad_()
    targets = torch.arange(B * S).view(B, S) % 16
    expected = torch.nn.functional.cross_entropy(full.float().flatten(0, 1), targets.flatten(), reduction="sum")
    torch.autograd.backward(expected)
    logits = full.detach().chunk(axis.size, 2)[axis.rank].clone().requires_grad_()
    losses = vocab_parallel_cross_entropy(logits, targets, 16, axis, overwrite_logits=True)
    assert losses.dtype == torch.float32
    torch.autograd.backward(losses.sum())
    torch.testing.assert_close(losses.sum(), expected)
    assert logits.grad is not None
    assert full.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad, full.grad.chunk(axis.size, 2)[axis.rank])


def _refusals(axis: Axis) -> None:
    with pytest.raises(PlanError, match=f"output size 13 .* {axis.size} ranks"):
        ColumnParallelLinear(H, 13, axis)
    with pytest.raises(PlanError, match="input size 13"):
        RowParallelLinear(13, H, axis)
    with pytest.raises(PlanError, match="sequence of 7 tokens"):
        reduce_scatter_sequence(torch.zeros(1, 7, H), axis)
    with pytest.raises(UsageError, match=r"token id 16 is outside the vocabulary of 16 \(0..15\)"):
        VocabParallelEmbedding(16, H, axis)(torch.tensor([[3, 16]]))
    with pytest.raises(UsageError, match="target id -1 is outside"):
        vocab_parallel_cross_entropy(torch.zeros(1, 2, 16 // axis.size), torch.tensor([[3, -1]]), 16, axis)


def _random_states(axis: Axis) -> None:
    states = RandomStates(123, axis)
    dropout_shared = ParallelDropout(0.5, states, sharded=False)
    dropout_sharded = ParallelDropout(0.5, states, sharded=True)
    ones = torch.ones(64)

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        return dropout_shared(ones), dropout_sharded(ones), dropout_shared(ones)

    snapshot = states.snapshot()
    first, second = draw(), draw()
    for k, alike in enumerate((True, False, True)):
        everyone = all_gather_stack(first[k], axis)
        assert all(torch.equal(row, everyone[0]) == alike for row in everyone[1:]), k
    assert not any(torch.equal(one, other) for one, other in zip(first, second))
    with states.replaying(snapshot):
        again = draw()
    assert all(torch.equal(one, other) for one, other in zip(first, again))
    third = draw()  # replaying left both streams where they were
    RandomStates(123, axis)
    fresh = RandomStates(123, axis)
    dropout_sharded.states = fresh
    draw(), draw()
    assert all(torch.equal(one, other) for one, other in zip(third, draw()))
    assert dropout_shared.eval()(ones) is ones


class _Waits(WaitClock):
    def __init__(self) -> None:
        self.names: list[str] = []

    def begin_wait(self) -> object:
        return len(self.names)

    def end_wait(self, name: str, mark: object) -> None:
        assert mark == len(self.names)
        self.names.append(name)


def _reports_waits(axis: Axis) -> None:
    waits = _Waits()
    axis.clocks.current = waits
    for sequence_parallel in (False, True):
        column = ColumnParallelLinear(H, 8, axis, sequence_parallel=sequence_parallel)
        row = RowParallelLinear(8, H, axis, sequence_parallel=sequence_parallel)
        x = torch.randn(B, S // axis.size, H, requires_grad=True)
        torch.autograd.backward(row(column(x)).sum())
    assert waits.names == ["all_reduce"] * 2 + [
        "all_gather",  # column forward
        "reduce_scatter",  # row forward
        "all_gather",  # row backward: dY
        "all_gather",  # column backward: x again, for dW
        "reduce_scatter",  # column backward: dX, waited for after dW
    ]
