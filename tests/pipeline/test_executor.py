"""The executor against plain autograd: linear, looped and V placements, more or fewer microbatches than ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybrid_runtime.comm.groups import join_groups
from hybrid_runtime.errors import RunError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.models.unit import Carry, Microbatch
from hybrid_runtime.pipeline.executor import Executor
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.schedule.actions import ActionList, parse_actions
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.registry import generate
from hybrid_runtime.telemetry.recorder import NullRecorder
from tests.pipeline.examples import First, Last, Middle, microbatches, oracle, run, units
from tests.ranks import run_ranks


class Failing(Middle):
    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        raise ValueError("no such luck")


def looped(num: int) -> tuple[ActionList, ...]:
    """GPipe order with stages 0, 2 on rank 0 and 1, 3 on rank 1."""
    rows = [[f"{k}F{i}" for k in (r, r + 2) for i in range(num)] for r in (0, 1)]
    back = [[f"{k}B{i}" for k in (r + 2, r) for i in range(num)] for r in (0, 1)]
    return tuple(parse_actions(row + tail) for row, tail in zip(rows, back))


def two_ranks(rank: int) -> None:
    for num in (1, 2, 5):
        for name in ("gpipe", "1f1b"):
            run(lower(generate(name, 2, num, "train"), (0, 1)), (0, 1), num)
    run(lower(looped(3), (0, 1, 0, 1)), (0, 1, 0, 1), 3)
    v = (0, 1, 1, 0)  # the turn of the V: stages 1 and 2 hand over locally, gradients too
    rows = ("0F0 0F1 3F0 3B0 3F1 3B1 0B0 0B1", "1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1")
    run(lower([parse_actions(row.split()) for row in rows], v), v, 2)


@pytest.mark.ranks
def test_two_ranks_equal_one_process() -> None:
    run_ranks(2, two_ranks)


def three_ranks(rank: int) -> None:
    for num in (2, 7):
        run(lower(generate("1f1b", 3, num, "train"), (0, 1, 2)), (0, 1, 2), num)


@pytest.mark.ranks
def test_three_ranks_with_microbatches_that_are_no_multiple() -> None:
    run_ranks(3, three_ranks)


def one_rank(rank: int) -> None:
    groups = join_groups(Mesh(), [], device=torch.device("cpu"), backend="gloo")
    recorder = NullRecorder(torch.device("cpu"))

    def executor(*actions: str, modules: list[nn.Module]) -> Executor:
        whole = Stage(0, [(f"unit{k}", module) for k, module in enumerate(modules)], training=True)
        return Executor(parse_actions(actions), {0: whole}, (0,), groups, loss_scale=1.0, recorder=recorder)

    class NoScalar(Last):
        def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
            return carry

    loss = executor("0F0", "0B0", modules=units(3)).run_step(microbatches(1))
    assert loss is not None
    assert loss.item() == pytest.approx(oracle(3, 1)[0], rel=1e-6)
    with pytest.raises(
        RunError, match=r"rank 0 \(dp 0, pp 0, tp 0\), stage 0, 0F0, unit unit1: ValueError: no such luck"
    ):
        executor("0F0", "0B0", modules=units(3, Failing)).run_step(microbatches(1))
    with pytest.raises(RunError, match="must return the sum of token losses as one scalar"):
        executor("0F0", "0B0", modules=[First(), NoScalar()]).run_step(microbatches(1))
    loss = executor("0UNSHARD", "0F0", "0I0", "0W0", "0REDUCE_GRAD", modules=units(3)).run_step(microbatches(1))
    assert loss is not None
    assert loss.item() == pytest.approx(oracle(3, 1)[0], rel=1e-6)
    done: list[tuple[int, torch.Tensor | None]] = []
    two = {n: Stage(n, [("unit", module)], training=True) for n, module in enumerate(units(2))}
    lists = parse_actions(["0F0", "0F1", "1F0", "1F1", "1I0", "0I0", "1W0", "1B1", "0W0", "0B1"])
    together = Executor(
        lists, two, (0, 0), groups, loss_scale=1.0, recorder=recorder, stage_done=lambda *told: done.append(told)
    )
    for times in (1, 2):
        loss = together.run_step(microbatches(2))
        assert [stage for stage, _ in done] == [1, 0] * times, "each stage once, after its last gradient"
        assert done[-2:] == [(1, loss), (0, None)], "the last one with the loss"
    untrained = [Microbatch(m.tokens) for m in microbatches(1)]
    assert executor("0F0", modules=units(3)).run_step(untrained) is None


def test_one_rank_and_what_goes_wrong() -> None:
    run_ranks(1, one_rank)


def forward_only(rank: int) -> None:
    lists = lower(generate("1f1b", 2, 4, "forward"), (0, 1))
    groups = join_groups(Mesh(pp_degree=2), [(0, 1)], device=torch.device("cpu"), backend="gloo")
    modules = units(2)
    executor = Executor(
        lists[rank],
        {rank: Stage(rank, [("unit", modules[rank])], training=False)},
        (0, 1),
        groups,
        loss_scale=1.0,
        recorder=NullRecorder(torch.device("cpu")),
    )
    for _ in range(2):
        loss = executor.run_step(microbatches(4))
    if rank == 1:
        assert loss is not None
        assert loss.item() == pytest.approx(oracle(2, 4)[0], rel=1e-6)


@pytest.mark.ranks
def test_forward_only() -> None:
    run_ranks(2, forward_only)
