"""Counted FLOPs against torch's own counter, against the planner's formulas, and summed over ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.flops import flops
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.measure import measured_costs
from hybrid_runtime.models.unit import BuildContext
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.shapes import LlamaShape

SHAPE = LlamaShape(
    vocab_size=48, hidden_size=32, num_layers=1, num_heads=8, num_kv_heads=4, ffn_size=40, head_dim=4, qkv_bias=True
)
B, S = 3, 16
META = torch.device("meta")


def rows(shape: LlamaShape, axis: Axis) -> dict[str, dict[str, int]]:
    units = build_units(llama_units(shape), BuildContext(tp=axis, device=META))
    return {name: flops(unit, B, S) for name, unit in units.items()}


@pytest.mark.parametrize("tp_degree", [1, 2, 4])
def test_sum_over_ranks_is_the_planners_cost(tp_degree: int) -> None:
    ranks = [rows(SHAPE, Axis(tp_degree, rank)) for rank in range(tp_degree)]
    for cost in unit_costs(SHAPE, microbatch_size=B, sequence_length=S, workload="train"):
        sums = [sum(rank[cost.name][kind] for rank in ranks) for kind in "FIW"]
        assert sums == [cost.forward_flops, cost.input_grad_flops, cost.weight_grad_flops], cost.name


def test_padding_and_shared_heads_are_counted_as_computed() -> None:
    shape = replace(SHAPE, vocab_size=46, num_kv_heads=2)
    whole, part = rows(shape, Axis()), rows(shape, Axis(4, 3))
    assert 4 * part["head"]["F"] == whole["head"]["F"] * 48 // 46
    assert 4 * part["0.attn"]["W"] - whole["0.attn"]["W"] == 2 * B * S * 32 * 2 * shape.kv_size


def test_torchs_counter_agrees_up_to_the_causal_half_and_recomputation() -> None:
    """torch counts attention as plain products here: F 4BqSS instead of 2BqSS, backward 8BqSS instead of 5BqSS."""
    counted = measured_costs(llama_units(SHAPE), microbatch_size=B, sequence_length=S)
    mine = rows(SHAPE, Axis())
    square = B * SHAPE.q_size * S * S
    for cost in counted:
        core = square if cost.name.endswith("attn") else 0
        assert cost.forward_flops == mine[cost.name]["F"] + 2 * core, cost.name
        assert cost.input_grad_flops == mine[cost.name]["I"] + 3 * core, cost.name
        assert cost.weight_grad_flops == mine[cost.name]["W"], cost.name
    by_formula = unit_costs(SHAPE, microbatch_size=B, sequence_length=S, workload="train")
    assert [cost.parameters for cost in counted] == [cost.parameters for cost in by_formula]


def test_a_unit_may_count_itself_and_plain_linears_are_counted() -> None:
    class Twice(nn.Linear):
        def flops(self, microbatch_size: int, sequence_length: int) -> dict[str, int]:
            return dict.fromkeys("FIW", 2 * microbatch_size * sequence_length)

    assert flops(Twice(2, 2), B, S) == {"F": 96, "I": 96, "W": 96}
    assert flops(nn.Sequential(nn.Linear(3, 5), nn.ReLU()), B, S) == dict.fromkeys("FIW", 2 * B * S * 15)
