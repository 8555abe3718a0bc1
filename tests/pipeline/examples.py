"""Small units with awkward carries, and a pipeline of them compared with plain autograd."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.groups import join_groups
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.models.unit import Carry, Microbatch
from hybrid_runtime.pipeline.executor import Executor
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.schedule.actions import ActionList, Kind
from hybrid_runtime.schedule.check import check
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear

WIDTH = 6


class First(nn.Module):
    """Turns tokens into a carry of two floats and one integer tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        x = self.table(microbatch.tokens)
        return x, x * 2, microbatch.tokens


class Middle(nn.Module):
    """Passes the second tensor through untouched: a buffer that must not go back to its pool."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        x, skip, tokens = carry
        return torch.tanh(self.linear(x)), skip, tokens


class Last(nn.Module):
    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        x, skip, tokens = carry
        assert torch.equal(tokens, microbatch.tokens)
        return (((x + skip) ** 2).sum(),)


class Parallel(nn.Module):
    """Its first linear reads the receive buffer, its last one the buffer of the output's gradient: both until W."""

    def __init__(self) -> None:
        super().__init__()
        self.up = ColumnParallelLinear(WIDTH, 2 * WIDTH, Axis(), bias=True)
        self.scale = nn.Parameter(torch.ones(2 * WIDTH))  # no parallel layer: its gradient comes with I
        self.down = RowParallelLinear(2 * WIDTH, WIDTH, Axis())
        with torch.no_grad():  # larger than usual, so that mixed-up microbatches cannot hide in the tolerance
            self.up.weight.mul_(30)
            self.down.weight.mul_(30)

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        x, *rest = carry
        return (self.down(torch.tanh(self.up(x)) * self.scale), *rest)


class Single(nn.Module):
    """First without company: a carry of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return (self.table(microbatch.tokens),)


class Squares(nn.Module):
    """Last for a carry of one tensor."""

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return ((carry[0] ** 2).sum(),)


Ends = tuple[type[nn.Module], type[nn.Module]]
ALONE: Ends = (Single, Squares)  # nothing is passed through, so every buffer returns to its pool


def units(num_stages: int, middle: type[nn.Module] = Middle, ends: Ends = (First, Last)) -> list[nn.Module]:
    torch.manual_seed(3)
    return [ends[0](), *(middle() for _ in range(num_stages - 2)), ends[1]()]


def microbatches(num: int) -> list[Microbatch]:
    tokens = torch.arange(num * 8).view(num, 2, 4) % 11
    return [Microbatch(tokens[i], tokens[i]) for i in range(num)]


def oracle(
    num_stages: int, num: int, middle: type[nn.Module] = Middle, ends: Ends = (First, Last)
) -> tuple[float, list[nn.Module]]:
    """Sum of losses, and the units with their gradients."""
    modules, total = units(num_stages, middle, ends), 0.0
    for microbatch in microbatches(num):
        carry: Carry = ()
        for module in modules:
            carry = module(carry, microbatch)
        torch.autograd.backward(carry[0] * 0.5)
        total += carry[0].item()
    return total, modules


def run(
    lists: Sequence[ActionList],
    stage_to_rank: Sequence[int],
    num: int,
    *,
    steps: int = 2,
    middle: type[nn.Module] = Middle,
    ends: Ends = (First, Last),
    ledger: ByteLedger | None = None,
) -> Executor:
    """Runs the lists on this world and compares the sum of losses and the gradients of every step."""
    assert not check(lists, stage_to_rank, num, "train").findings
    num_stages, pp = len(stage_to_rank), max(stage_to_rank) + 1
    pairs = {
        (stage_to_rank[a.stage], stage_to_rank[a.stage + (1 if a.kind is Kind.SEND_F else -1)])
        for row in lists
        for a in row
        if a.kind.is_send
    }
    groups = join_groups(Mesh(pp_degree=pp), pairs, device=torch.device("cpu"), backend="gloo")
    modules, me = units(num_stages, middle, ends), groups.place.pp
    stages = {
        k: Stage(k, [(f"unit{k}", modules[k])], training=True) for k in range(num_stages) if stage_to_rank[k] == me
    }
    recorder = NullRecorder(torch.device("cpu"))
    executor = Executor(lists[me], stages, stage_to_rank, groups, loss_scale=0.5, recorder=recorder, ledger=ledger)
    total, reference = oracle(num_stages, num, middle, ends)
    for _ in range(steps):
        for module in modules:
            module.zero_grad()
        loss = executor.run_step(microbatches(num))
        if stage_to_rank[-1] == me:
            assert loss is not None
            assert loss.item() == pytest.approx(total, rel=1e-6)
        else:
            assert loss is None
        for k in stages:
            for mine, theirs in zip(modules[k].parameters(), reference[k].parameters()):
                torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)
        assert all(stage.in_flight == 0 for stage in stages.values())
        assert not executor.weight_queue
    return executor
