"""What each unit of a Llama-family model costs: exact integers, no tensors.

Convention. One multiply-add is 2 FLOPs. H hidden, q and kv the widths of all query and key/value heads, f the MLP's
width, V vocabulary, B sequences of S tokens in a microbatch, n = B*S.

    unit        F                               I                        W
    embedding   0 (a lookup)                    0                        0
    k.attn      2n*(H*(q+2kv) + q*H) + core     2n*(...) + 5/2 core      2n*(...)
    k.mlp       2n*3Hf                          2n*3Hf                   2n*3Hf
    head        2n*HV                           2n*HV                    2n*HV

`core` = 2*B*q*S*S: both attention products (scores, and scores times values) are 4*B*q*S*S, of which causal attention
needs half. Its input gradient has five such products because a flash-type backward computes the scores again (Dao 2023,
FlashAttention-2, arXiv 2307.08691, section 4.1); it has no weights. Grouped-query attention has a smaller kv, but its
core works on all query heads. Not counted, because they are no matrix products: norms, rotary positions, softmax,
activations, residuals, biases, the loss and the optimizer. The linear terms are those of Narayanan et al. 2021
(arXiv 2104.04473, appendix), adapted to the gated MLP.

Computed again where a unit forgets it (models/residual.py): with "full" all of F but the last product (q*H, or H*f of
the MLP), with "selective" the core.

Parameters count everything that is trained: norm weights and Qwen2's q, k, v biases too. The vocabulary is not padded.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.pieces import Piece, read_piece
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.shapes import LlamaShape


def unit_costs(shape: LlamaShape, *, microbatch_size: int, sequence_length: int, workload: str) -> tuple[UnitCost, ...]:
    """Cost of every unit for one microbatch, in model order, all tensor-parallel ranks together.

    Args:
        microbatch_size: sequences of one microbatch.
        sequence_length: tokens of a sequence.
        workload: "train", or "forward" where I and W are 0.
    """
    assert workload in ("train", "forward"), workload
    tokens = microbatch_size * sequence_length
    core_flops = 2 * microbatch_size * shape.q_size * sequence_length**2
    unlike_layers = {"embedding": _embedding(shape), "head": _head(shape, tokens)}
    costs = {"attn": _attention(shape, tokens, core_flops), "mlp": _mlp(shape, tokens)} | unlike_layers
    return tuple(_for_workload(costs[name.rpartition(".")[2]], name, workload) for name in shape.unit_names())


def piece_cost(cost: UnitCost, piece: Piece) -> UnitCost:
    """What some parts of a unit cost. Pieces that cover a unit cost together exactly what it costs.

    Parts that are no whole fraction of a cost are rounded against the running total; rows past the end of an embedding
    are padding and count nothing.
    """
    whole = piece.start == 0 and piece.stop >= cost.parts
    shared = cost.parameters - cost.fixed_parameters

    def between(total: int) -> int:
        upto = (min(part, cost.parts) for part in (piece.start, piece.stop))
        start, stop = (total * part // cost.parts for part in upto)
        return stop - start

    return cost.model_copy(
        update={
            "name": cost.name if whole else str(piece),
            "forward_flops": between(cost.forward_flops),
            "input_grad_flops": between(cost.input_grad_flops),
            "weight_grad_flops": between(cost.weight_grad_flops),
            "selective_recompute_flops": between(cost.selective_recompute_flops),
            "full_recompute_flops": between(cost.full_recompute_flops),
            "parameters": between(shared) + (cost.fixed_parameters if piece.start == 0 else 0),
            "parts": piece.parts,
            "fixed_parameters": cost.fixed_parameters if piece.start == 0 else 0,
        }
    )


def costs_of_names(names: Sequence[str], costs: Sequence[UnitCost]) -> list[UnitCost]:
    """The cost of every unit and piece of a stage, by name."""
    by_name = {cost.name: cost for cost in costs}
    pieces = ((name, read_piece(name)) for name in names)
    return [by_name[name] if piece is None else piece_cost(by_name[piece.unit], piece) for name, piece in pieces]


def _embedding(shape: LlamaShape) -> UnitCost:
    embedding = _linear_unit(0, parameters=shape.vocab_size * shape.hidden_size)
    return embedding.model_copy(update={"parts": shape.vocab_size})


def _attention(shape: LlamaShape, tokens: int, core_flops: int) -> UnitCost:
    qkv_size = shape.q_size + 2 * shape.kv_size
    weights = shape.hidden_size * qkv_size + shape.q_size * shape.hidden_size
    biases = qkv_size if shape.qkv_bias else 0
    norms = shape.hidden_size + (2 * shape.head_dim if shape.qk_norm else 0)
    linear = _linear_unit(2 * tokens * weights, parameters=norms + weights + biases)
    return linear.model_copy(
        update={
            "forward_flops": linear.forward_flops + core_flops,
            "input_grad_flops": linear.input_grad_flops + 5 * core_flops // 2,
            "selective_recompute_flops": core_flops,
            "full_recompute_flops": 2 * tokens * shape.hidden_size * qkv_size + core_flops,
            "parts": shape.attention_parts,
            "fixed_parameters": norms,
        }
    )


def _mlp(shape: LlamaShape, tokens: int) -> UnitCost:
    weights = 3 * shape.hidden_size * shape.ffn_size
    mlp = _linear_unit(2 * tokens * weights, parameters=shape.hidden_size + weights)
    return mlp.model_copy(
        update={
            "parts": shape.ffn_size,
            "fixed_parameters": shape.hidden_size,
            "full_recompute_flops": 2 * tokens * weights * 2 // 3,
        }
    )


def _head(shape: LlamaShape, tokens: int) -> UnitCost:
    """Final norm and vocabulary linear; a tied weight is counted in the embedding."""
    weights = shape.vocab_size * shape.hidden_size
    own_weights = 0 if shape.tie_embeddings else weights
    return _linear_unit(2 * tokens * weights, parameters=shape.hidden_size + own_weights)


def _linear_unit(flops: int, *, parameters: int) -> UnitCost:
    """A unit of linears only: F, I and W are the same three products with the roles exchanged."""
    return UnitCost(
        name="", forward_flops=flops, input_grad_flops=flops, weight_grad_flops=flops, parameters=parameters
    )


def _for_workload(cost: UnitCost, name: str, workload: str) -> UnitCost:
    nothing = dict.fromkeys(
        ("input_grad_flops", "weight_grad_flops", "selective_recompute_flops", "full_recompute_flops"), 0
    )
    backward = {} if workload == "train" else nothing
    return cost.model_copy(update={"name": name, **backward})
