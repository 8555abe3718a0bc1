"""Pieces of a unit against the whole unit, in float64: output, input gradient, every weight gradient, collectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis, WaitClock, axis_of
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import PlanError
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.flops import flops
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch, specs_of
from hybrid_runtime.pieces import Slice, unit_of
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.tensor_parallel.initialise import Init
from hybrid_runtime.tensor_parallel.linear import RowParallelLinear
from hybrid_runtime.tensor_parallel.recompute import Recompute
from hybrid_runtime.tensor_parallel.shard import gather_full, iter_parameters, sum_partial_gradients
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue
from tests.ranks import run_ranks

SHAPE = LlamaShape(
    vocab_size=50, hidden_size=16, num_layers=1, num_heads=16, num_kv_heads=8, ffn_size=24, head_dim=4, qkv_bias=True
)
WHOLES = ("0.attn", "0.mlp")
CUTS = (
    ("0.mlp[0:8]", "0.mlp[8:24]"),
    ("0.mlp[0:4]", "0.mlp[4:8]", "0.mlp[8:24]"),
    ("0.attn[0:4]", "0.attn[4:8]"),
)
ONE_HEAD_EACH = tuple(f"0.attn[{head}:{head + 1}]" for head in range(8))
B, S = 2, 8
KINDS: tuple[RecomputeKind, ...] = ("none", "selective", "full")
TOKENS = Microbatch(torch.zeros(B, S, dtype=torch.int64))


class Waits(WaitClock):
    """Names of the collectives that were waited for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def begin_wait(self) -> object:
        return None

    def end_wait(self, name: str, mark: object) -> None:
        self.names.append(name)


def build(
    names: Sequence[str], axis: Axis, *, sequence_parallel: bool, shape: LlamaShape = SHAPE
) -> dict[str, nn.Module]:
    context = BuildContext(tp=axis, sequence_parallel=sequence_parallel, dtype=torch.float64, seed=3)
    units = build_units(specs_of(names, llama_units(shape)), context)
    with torch.no_grad():  # so that every gradient matters
        for name, parameter, spec in iter_parameters(units):
            if name.endswith("norm.weight"):
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()))
            elif name.endswith("bias"):
                held = torch.cat([torch.arange(s.start, s.start + s.length) for s in spec.segments])
                parameter.copy_(held / 100)
            else:
                parameter.mul_(20)
    return units


def random(seed: int) -> Tensor:
    return torch.randn(B, S, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mine(x: Tensor, axis: Axis, sequence_parallel: bool) -> Tensor:
    return x.chunk(axis.size, 1)[axis.rank].contiguous() if sequence_parallel else x


def through(
    units: dict[str, nn.Module],
    axis: Axis,
    *,
    sequence_parallel: bool,
    split: bool,
    recompute: RecomputeKind = "none",
) -> tuple[Tensor, Tensor, dict[str, Tensor], list[str]]:
    """Each unit as a stage of its own: output, input gradient, whole gradients by the unit's names, collectives."""
    axis.clocks.current = waits = Waits()
    queue = WeightQueue()
    stages = [Stage(index, [unit], training=True) for index, unit in enumerate(units.items())]
    carry: Carry = (mine(random(1), axis, sequence_parallel),)
    for stage in stages:
        stage.use_queue(queue)
        stage.recompute(Recompute(recompute), units)
        carry = stage.forward(0, carry, TOKENS)
    gradients: Carry = (mine(random(2), axis, sequence_parallel),)
    for stage in reversed(stages):
        gradients = (stage.input_gradient if split else stage.backward)(0, gradients)
    for stage in stages:
        stage.weight_gradient(0)
    collectives = sorted(waits.names)
    sum_partial_gradients(units, axis)
    whole: dict[str, Tensor] = {}
    for unit, module in units.items():
        for name, parameter, spec in iter_parameters(module):
            assert parameter.grad is not None
            for kind, value in (("value", parameter), ("gradient", parameter.grad)):
                key = f"{unit_of(unit)}.{name}.{kind}"
                whole[key] = whole.get(key, torch.zeros(())) + gather_full(value, spec, axis)
    return carry[0].detach(), gradients[0], whole, collectives


def compare(axis: Axis, cuts: Sequence[Sequence[str]]) -> None:
    for sequence_parallel in (False, True):
        for split in (False, True):
            oracles = {
                name: through(
                    build([name], axis, sequence_parallel=sequence_parallel),
                    axis, sequence_parallel=sequence_parallel, split=split,
                )
                for name in WHOLES
            }  # fmt: skip
            for names in cuts:
                pieces = build(names, axis, sequence_parallel=sequence_parallel)
                found = through(pieces, axis, sequence_parallel=sequence_parallel, split=split)
                expected = oracles[unit_of(names[0])]
                for one, other in zip(found[:2], expected[:2]):
                    assert one.shape == other.shape
                    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
                assert set(found[2]) == set(expected[2])
                for name, value in expected[2].items():
                    tolerance = 0.0 if name.endswith("value") else 1e-11
                    torch.testing.assert_close(found[2][name], value, rtol=tolerance, atol=tolerance, msg=name)
                assert found[3] == expected[3], "pieces have the collectives of the whole unit, no more and no fewer"


def compare_recomputed(axis: Axis) -> None:
    """Bit for bit; with sequence parallelism every first piece's column gathers its input once more in the backward."""
    for sequence_parallel in (False, True):
        for split in (False, True):
            for names in (*((name,) for name in WHOLES), *CUTS):
                kept, *others = (
                    through(
                        build(names, axis, sequence_parallel=sequence_parallel), axis,
                        sequence_parallel=sequence_parallel, split=split, recompute=kind,
                    )
                    for kind in KINDS
                )  # fmt: skip
                for kind, found in zip(KINDS[1:], others):
                    assert torch.equal(found[0], kept[0])
                    assert torch.equal(found[1], kept[1])
                    assert all(torch.equal(found[2][name], value) for name, value in kept[2].items()), (kind, names)
                    gathers = int(kind == "full" and sequence_parallel and axis.size > 1)
                    assert found[3] == sorted(kept[3] + ["all_gather"] * gathers), (kind, names)


def _ranks(rank: int) -> None:
    axis = axis_of(dist.group.WORLD)
    compare(axis, CUTS)
    if axis.size == 2:
        compare_recomputed(axis)


def test_pieces_equal_the_whole_unit() -> None:
    compare(Axis(), (*CUTS, ONE_HEAD_EACH))


def test_recomputed_they_are_the_same_bit_for_bit() -> None:
    compare_recomputed(Axis())


@pytest.mark.ranks
@pytest.mark.parametrize("size", [2, 4])
def test_pieces_over_ranks_equal_the_whole_unit(size: int) -> None:
    run_ranks(size, _ranks)


@pytest.mark.parametrize("names", [*CUTS, ONE_HEAD_EACH])
def test_flops_and_parameters_of_pieces_add_up(names: Sequence[str]) -> None:
    pieces, (whole,) = (
        build(names, Axis(), sequence_parallel=False),
        build([unit_of(names[0])], Axis(), sequence_parallel=False).values(),
    )
    for kind in "FIW":
        assert sum(flops(piece, B, S)[kind] for piece in pieces.values()) == flops(whole, B, S)[kind]
    counts = [sum(p.numel() for p in unit.parameters()) for unit in (*pieces.values(), whole)]
    assert sum(counts[:-1]) == counts[-1]


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(PlanError, match="a part that several of 4 tensor-parallel ranks hold cannot be cut"):
        build(["0.attn[0:1]"], Axis(4, 0), sequence_parallel=False, shape=replace(SHAPE, num_kv_heads=2))
    with pytest.raises(PlanError, match=r"piece \[0:3\] of 24 parts cannot be cut .* over 2 ranks"):
        build(["0.mlp[0:3]"], Axis(2, 0), sequence_parallel=False)
    with pytest.raises(PlanError, match=r"piece '0.mlp\[0:30\]' of unit '0.mlp', but its parts are 0 to 24"):
        build(["0.mlp[0:30]"], Axis(), sequence_parallel=False)
    with pytest.raises(PlanError, match=r"piece 'head\[0:1\]' of unit 'head', but it cannot be cut"):
        build(["head[0:1]"], Axis(), sequence_parallel=False)
    with pytest.raises(PlanError, match=r"has a unit '7\.mlp' that the model lacks"):
        build(["7.mlp"], Axis(), sequence_parallel=False)


def test_a_bias_after_the_sum_is_added_once_by_the_last_piece() -> None:
    rows = [
        RowParallelLinear(8, 4, Axis(), bias=True, piece=Slice(start, stop, 8), init=Init(seed=1))
        for start, stop in ((0, 2), (2, 8))
    ]
    assert [row.bias is None for row in rows] == [True, False]
    whole = RowParallelLinear(8, 4, Axis(), bias=True, init=Init(seed=1))
    for layer in (rows[1], whole):
        assert layer.bias is not None
        torch.nn.init.constant_(layer.bias, 5.0)
    x = torch.randn(1, 3, 8)
    u = rows[0](x[..., :2], residual=torch.ones(1, 3, 4))
    torch.testing.assert_close(rows[1](x[..., 2:], partial=u), whole(x) + 1)
