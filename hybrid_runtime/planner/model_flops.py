"""Model FLOPs: what training or running a model takes in principle, however a runtime goes about it.

Model FLOPs utilisation (MFU) is the observed tokens per second over the most that the devices' matrix units could do
(Chowdhery et al. 2022, PaLM, arXiv 2204.02311, section 4.1 and appendix B):

    MFU = tokens/s * (6 N + 12 L H Q T) / peak            forward only: 2 N + 4 L H Q T

N weights that a token is multiplied with (of every linear and of the head; an embedding is a lookup, norms and biases
are no products), L layers, H query heads of width Q, T tokens of a sequence. What is computed twice (recompute) or more
than needed (padded vocabulary rows) does not count; the half of the attention's scores that causality leaves out does,
as in the paper, so that figures can be compared with those of others.
"""

from __future__ import annotations

from hybrid_runtime.plan import Plan
from hybrid_runtime.shapes import LlamaShape

_PRODUCTS = {"train": 3, "forward": 1}  # forward, input gradient and weight gradient; or the first alone


def model_flops(plan: Plan, shape: LlamaShape | None) -> int:
    """Model FLOPs of one step, over all ranks.

    Args:
        shape: the model's sizes; None for a user's own units, whose forward FLOPs are taken as the plan counts them.
    """
    products = _PRODUCTS[plan.workload]
    if shape is None:
        return products * sum(unit.forward_flops for unit in plan.units) * plan.num_microbatches * plan.dp_degree
    return products * forward_flops_per_token(shape, plan.sequence_length) * plan.tokens_per_step


def served_flops(shape: LlamaShape, prompt_tokens: int, output_tokens: int) -> int:
    """Model FLOPs of answering one request: every token but the answer's last passes the layers, with the attention
    scores of those before it; the head makes logits for the tokens of the answer alone."""
    passed = prompt_tokens + output_tokens - 1
    head = 2 * shape.hidden_size * shape.vocab_size
    layers = forward_flops_per_token(shape, 0) - head
    scores = 4 * shape.num_layers * shape.q_size * (passed * (passed + 1) // 2)
    return passed * layers + output_tokens * head + scores


def forward_flops_per_token(shape: LlamaShape, sequence_length: int) -> int:
    """2 N + 4 L H Q T."""
    attention = shape.hidden_size * (shape.q_size + 2 * shape.kv_size) + shape.q_size * shape.hidden_size
    mlp = 3 * shape.hidden_size * shape.ffn_size
    weights = shape.num_layers * (attention + mlp) + shape.hidden_size * shape.vocab_size
    return 2 * weights + 4 * shape.num_layers * shape.q_size * sequence_length
