"""The whole model over 1, 2 and 4 tensor-parallel ranks: losses and every gathered gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis, axis_of
from hybrid_runtime.comm.collectives import all_gather_stack, all_reduce
from hybrid_runtime.errors import PlanError
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch
from hybrid_runtime.shapes import LlamaShape, RopeScaling
from hybrid_runtime.tensor_parallel.gradients import set_accumulate_in_place
from hybrid_runtime.tensor_parallel.shard import gather_full, iter_parameters, square_sum, sum_partial_gradients
from tests.gradients import counted_gradients
from tests.ranks import run_ranks

LLAMA = LlamaShape(vocab_size=50, hidden_size=32, num_layers=2, num_heads=8, num_kv_heads=8, ffn_size=48, head_dim=4)
SHARED_HEADS = replace(  # grouped; shared by ranks on 4
    LLAMA, num_kv_heads=2, qkv_bias=True, qk_norm=True, tie_embeddings=True, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 4)
)
TOKENS = torch.arange(3 * 2 * 8).view(3, 2, 8) * 7 % 50  # three microbatches of two sequences


def build(shape: LlamaShape, **context: Any) -> dict[str, nn.Module]:
    units = build_units(llama_units(shape), BuildContext(seed=3, **context))
    with torch.no_grad():  # so that biases, norms and their gradients matter
        for name, parameter, _ in iter_parameters(units):
            if name.endswith("norm.weight"):
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()))
            if name.endswith("weight") and not name.endswith(("q_norm.weight", "k_norm.weight")):  # scores large enough
                parameter.mul_(5.0)
    return units


def forward(units: dict[str, nn.Module], microbatch: Microbatch) -> Tensor:
    carry: Carry = ()
    for unit in units.values():
        carry = unit(carry, microbatch)
    return carry[0]


def train(units: dict[str, nn.Module], *, in_place: bool = False) -> Tensor:
    """Sum of losses over the microbatches; gradients are left in the parameters."""
    for unit in units.values():
        set_accumulate_in_place(unit, in_place)
    total = torch.zeros((), dtype=torch.float64)
    for tokens in TOKENS:
        loss = forward(units, Microbatch(tokens, tokens.roll(-1, 1)))
        torch.autograd.backward(loss)
        total += loss.detach()
    return total


@pytest.mark.ranks
@pytest.mark.parametrize("size", [2, 4])
def test_losses_and_gradients_equal_one_rank(size: int) -> None:
    run_ranks(size, _parity)


def _parity(rank: int) -> None:
    axis = axis_of(dist.group.WORLD)
    for shape in (LLAMA, SHARED_HEADS)[axis.size // 4 :]:
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
            _one_parity(shape, axis, dtype, tolerance)
    with pytest.raises(PlanError, match="6 attention heads cannot be split over tp_degree = 4"):
        build(replace(LLAMA, num_heads=6, num_kv_heads=6), tp=Axis(4, 0))
    with pytest.raises(PlanError, match="6 key/value heads can be neither split over nor shared by tp_degree = 4"):
        build(replace(LLAMA, num_heads=12, num_kv_heads=6), tp=Axis(4, 0))


def _one_parity(shape: LlamaShape, axis: Axis, dtype: torch.dtype, tolerance: float) -> None:
    reference = build(shape, dtype=dtype)
    loss = train(reference)
    expected = {name: parameter for name, parameter, _ in iter_parameters(reference)}
    square = sum(float(p.grad.double().square().sum()) for p in expected.values() if p.grad is not None)
    for sequence_parallel in (False, True):
        units = build(shape, dtype=dtype, tp=axis, sequence_parallel=sequence_parallel)
        torch.testing.assert_close(train(units, in_place=sequence_parallel), loss, rtol=tolerance, atol=0)
        sum_partial_gradients(units, axis)
        named = list(iter_parameters(units))
        assert [name for name, _, _ in named] == list(expected)
        for name, parameter, spec in named:
            assert parameter.grad is not None
            whole = expected[name]
            assert torch.equal(gather_full(parameter, spec, axis), whole), f"{name}: initial weights differ"
            assert whole.grad is not None
            error = (gather_full(parameter.grad, spec, axis) - whole.grad).norm() / whole.grad.norm()
            assert error < tolerance, f"{name}: {error} ({shape}, sequence parallel {sequence_parallel})"
        mine = square_sum(counted_gradients(named, axis))
        assert float(all_reduce(mine, axis)) == pytest.approx(square, rel=10 * tolerance)
        _logits_equal(units, reference, axis, shape.vocab_size, tolerance)


def _logits_equal(
    units: dict[str, nn.Module], reference: dict[str, nn.Module], axis: Axis, vocab_size: int, tolerance: float
) -> None:
    with torch.no_grad():
        expected = forward(reference, Microbatch(TOKENS[0]))
        local = forward(units, Microbatch(TOKENS[0]))
    joined = torch.cat(list(all_gather_stack(local, axis)), -1)
    assert torch.equal(joined[..., vocab_size:], torch.zeros_like(joined[..., vocab_size:]))  # padded rows are zero
    assert (joined[..., :vocab_size] - expected).norm() / expected.norm() < tolerance


def test_units_are_named_in_order_and_the_tied_weight_is_shared() -> None:
    units = build(SHARED_HEADS)
    assert tuple(units) == SHARED_HEADS.unit_names()
    names = [name for name, _, _ in iter_parameters(units)]
    assert "0.attn.qkv.bias" in names
    assert "head.output.weight" not in names, "a shared parameter is walked once, where it is first held"
    embedding, head = (dict(units[name].named_parameters()) for name in ("embedding", "head"))
    assert head["output.weight"] is embedding["tokens.weight"]


def test_a_slice_of_the_model_has_the_weights_of_the_whole_and_tied_copies_start_equal() -> None:
    specs = llama_units(SHARED_HEADS)
    whole = dict(build_units(specs, BuildContext(seed=3)))
    (head,) = build_units(specs[-1:], BuildContext(seed=3)).values()
    tied, owner = dict(head.named_parameters())["output.weight"], dict(whole["embedding"].named_parameters())
    assert tied is not owner["tokens.weight"]
    assert torch.equal(tied, owner["tokens.weight"])
    (attention,) = build_units(specs[1:2], BuildContext(seed=3)).values()
    for name, parameter in attention.named_parameters():
        assert torch.equal(parameter, dict(whole["0.attn"].named_parameters())[name])


def test_initial_loss_is_the_logarithm_of_the_vocabulary() -> None:
    units = build_units(llama_units(LLAMA), BuildContext())
    loss = forward(units, Microbatch(TOKENS[0], TOKENS[1])) / TOKENS[0].numel()
    assert loss.item() == pytest.approx(torch.log(torch.tensor(50.0)).item(), rel=0.01)


def test_attention_is_causal() -> None:
    units = build(LLAMA, dtype=torch.float64)
    changed = TOKENS[0].clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    with torch.no_grad():
        before, after = (forward(units, Microbatch(tokens)) for tokens in (TOKENS[0], changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_bfloat16_trains_near_float32() -> None:
    losses = [train(build(LLAMA, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)
