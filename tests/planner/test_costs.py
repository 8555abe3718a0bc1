from __future__ import annotations

from itertools import pairwise

import pytest

from hybrid_runtime.pieces import Piece
from hybrid_runtime.planner.costs import piece_cost, unit_costs
from hybrid_runtime.shapes import PRESETS, LlamaShape

GROUPED = LlamaShape(
    vocab_size=11, hidden_size=8, num_layers=2, num_heads=4, num_kv_heads=2, ffn_size=5, head_dim=3, qkv_bias=True
)


def parameters(shape: LlamaShape) -> int:
    return sum(cost.parameters for cost in unit_costs(shape, microbatch_size=1, sequence_length=1, workload="train"))


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-0.5b", 494_032_768),
        ("tinyllama-1.1b", 1_100_048_384),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_parameters_are_the_published_ones(preset: str, published: int) -> None:
    assert parameters(PRESETS[preset]) == published


def test_by_hand() -> None:
    # B=2, S=7: 14 tokens; q = 12, kv = 6
    embedding, attention, mlp, *_, head = unit_costs(GROUPED, microbatch_size=2, sequence_length=7, workload="train")
    linears = 2 * 14 * (8 * (12 + 6 + 6) + 12 * 8)
    core = 2 * 2 * 12 * 7 * 7
    assert (embedding.name, embedding.flops, embedding.parameters) == ("embedding", 0, 11 * 8)
    assert attention.name == "0.attn"
    assert attention.forward_flops == linears + core
    assert attention.input_grad_flops == linears + core * 5 // 2
    assert attention.weight_grad_flops == linears
    assert attention.parameters == 8 + 8 * 24 + 24 + 12 * 8
    assert (mlp.name, mlp.forward_flops, mlp.flops) == ("0.mlp", 2 * 14 * 3 * 8 * 5, 3 * 2 * 14 * 3 * 8 * 5)
    assert mlp.parameters == 8 + 3 * 8 * 5
    assert (head.name, head.forward_flops, head.parameters) == ("head", 2 * 14 * 8 * 11, 8 + 8 * 11)


def test_names_are_the_models() -> None:
    for shape in PRESETS.values():
        costs = unit_costs(shape, microbatch_size=1, sequence_length=8, workload="train")
        assert tuple(cost.name for cost in costs) == shape.unit_names()


def test_a_forward_pass_has_no_gradients() -> None:
    train = unit_costs(GROUPED, microbatch_size=2, sequence_length=7, workload="train")
    forward = unit_costs(GROUPED, microbatch_size=2, sequence_length=7, workload="forward")
    assert [cost.flops for cost in forward] == [cost.forward_flops for cost in train]
    assert [cost.parameters for cost in forward] == [cost.parameters for cost in train]
    assert not any(cost.input_grad_flops or cost.weight_grad_flops for cost in forward)


def test_six_flops_per_weight_and_token_beside_the_attention_core() -> None:
    shape = PRESETS["llama-3-8b"]
    total = sum(cost.flops for cost in unit_costs(shape, microbatch_size=1, sequence_length=4096, workload="train"))
    weights = parameters(shape) - shape.vocab_size * shape.hidden_size - (2 * shape.num_layers + 1) * shape.hidden_size
    core = shape.num_layers * 2 * shape.q_size * 4096**2
    assert total == 6 * 4096 * weights + core * 7 // 2


def test_a_tied_head_works_as_much_as_an_untied_one() -> None:
    shape = PRESETS["qwen2.5-0.5b"]
    *_, head = unit_costs(shape, microbatch_size=1, sequence_length=16, workload="train")
    assert head.parameters == shape.hidden_size
    assert head.weight_grad_flops == 2 * 16 * shape.hidden_size * shape.vocab_size


@pytest.mark.parametrize("cuts", [(0, 100, 256), (0, 1, 2, 256), (0, 256)])
def test_pieces_cost_together_what_the_unit_costs(cuts: tuple[int, ...]) -> None:
    whole = next(
        c
        for c in unit_costs(PRESETS["tiny"], microbatch_size=3, sequence_length=7, workload="train")
        if c.name == "2.mlp"
    )
    pieces = [piece_cost(whole, Piece("2.mlp", a, b)) for a, b in pairwise(cuts)]
    for name in ("forward_flops", "input_grad_flops", "weight_grad_flops", "parameters", "fixed_parameters", "parts"):
        assert sum(getattr(piece, name) for piece in pieces) == getattr(whole, name)
    assert pieces[0].fixed_parameters == 96
