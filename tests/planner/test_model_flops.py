"""Model FLOPs against the formula of the PaLM paper and against figures that others publish."""

from __future__ import annotations

from dataclasses import replace

from hybrid_runtime.deployment import parse_deployment
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.planner.model_flops import forward_flops_per_token, model_flops
from hybrid_runtime.shapes import PRESETS
from tests.commands import small


def test_llama_3_8b_by_the_formula() -> None:
    """6 N + 12 L H Q T with N = 8 030 261 248 parameters less the embedding and the norms."""
    shape = PRESETS["llama-3-8b"]
    norms = (2 * shape.num_layers + 1) * shape.hidden_size
    weights = 8_030_261_248 - shape.vocab_size * shape.hidden_size - norms
    attention = 12 * shape.num_layers * shape.num_heads * shape.head_dim * 8192
    assert 3 * forward_flops_per_token(shape, 8192) == 6 * weights + attention


def test_a_tied_head_is_still_multiplied_with() -> None:
    shape = PRESETS["llama-3-8b"]
    assert forward_flops_per_token(replace(shape, tie_embeddings=True), 64) == forward_flops_per_token(shape, 64)


def test_it_is_the_planners_count_with_the_whole_attention_matrix() -> None:
    shape = PRESETS["tiny"]
    units = unit_costs(shape, microbatch_size=3, sequence_length=32, workload="forward")
    half = shape.num_layers * 2 * 3 * shape.q_size * 32**2
    assert forward_flops_per_token(shape, 32) * 3 * 32 == sum(unit.forward_flops for unit in units) + half


def test_a_step_has_all_tokens_of_all_replicas_and_three_products_of_a_forward() -> None:
    deployment = parse_deployment(small(parallel={"dp_degree": 2}), source="test")
    assert deployment.shape is not None
    costs = unit_costs(deployment.shape, microbatch_size=1, sequence_length=16, workload="train")
    plan = make_plan(deployment, costs)
    assert model_flops(plan, deployment.shape) == 3 * 4 * 16 * forward_flops_per_token(deployment.shape, 16)
    own = sum(unit.forward_flops for unit in plan.units) * 4  # four microbatches of one sequence
    assert model_flops(plan, None) == 3 * own
