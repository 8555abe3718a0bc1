"""Hugging Face's names for the parameters of the Llama family's units.

unit        parameter                 tensors in the folder (joined along dim 0)
embedding   tokens.weight             model.embed_tokens.weight
k.attn      norm.weight               model.layers.k.input_layernorm.weight
            qkv.weight, .bias         model.layers.k.self_attn.{q,k,v}_proj.*
            q_norm.weight, k_norm.*   model.layers.k.self_attn.{q,k}_norm.weight
            output.weight             model.layers.k.self_attn.o_proj.weight
k.mlp       norm.weight               model.layers.k.post_attention_layernorm.weight
            gate_up.weight            model.layers.k.mlp.{gate,up}_proj.weight
            down.weight               model.layers.k.mlp.down_proj.weight
head        norm.weight               model.norm.weight
            output.weight             lm_head.weight, or the embedding's when tied

A piece of a unit (`3.mlp[0:96]`, pieces.py) has the names of its unit.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from hybrid_runtime.pieces import unit_of
from hybrid_runtime.shapes import LlamaShape

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


def names_of_unit(unit: str, *, tied: bool = False) -> dict[str, tuple[str, ...]]:
    """Parameter -> names of the tensors that it joins; empty for a name that no unit of the family has.

    Args:
        unit: name of a unit or of a piece.
        tied: the head has the embedding's weight.
    """
    number, _, kind = unit_of(unit).rpartition(".")
    layer = f"model.layers.{number}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    if kind in ("attn", "mlp") and not number.isdecimal():
        return {}
    names: dict[str, dict[str, tuple[str, ...]]] = {
        "embedding": {"tokens.weight": (EMBEDDING,)},
        "attn": {
            "norm.weight": (f"{layer}.input_layernorm.weight",),
            "qkv.weight": tuple(f"{attention}.{letter}_proj.weight" for letter in "qkv"),
            "qkv.bias": tuple(f"{attention}.{letter}_proj.bias" for letter in "qkv"),
            "q_norm.weight": (f"{attention}.q_norm.weight",),
            "k_norm.weight": (f"{attention}.k_norm.weight",),
            "output.weight": (f"{attention}.o_proj.weight",),
        },
        "mlp": {
            "norm.weight": (f"{layer}.post_attention_layernorm.weight",),
            "gate_up.weight": (f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"),
            "down.weight": (f"{mlp}.down_proj.weight",),
        },
        "head": {"norm.weight": ("model.norm.weight",), "output.weight": (EMBEDDING if tied else LM_HEAD,)},
    }
    return names.get(kind, {})


def layer_prefixes(unit: str) -> tuple[str, ...]:
    """What the names of a layer's tensors begin with that no other unit has; nothing for embedding and head."""
    number, _, kind = unit_of(unit).rpartition(".")
    rooms = {"attn": "self_attn", "mlp": "mlp"}
    return (f"model.layers.{number}.{rooms[kind]}.",) if kind in rooms else ()


def tensor_shapes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model's folder, in the order of the model; no lm_head where it is tied."""
    return {part.name: part.shape for parts in joined_tensors(shape).values() for part in parts}


class Part(NamedTuple):
    """A tensor of a folder that is a part of a parameter.

    Attributes:
        first: the parameter's row where it begins.
        shape: of the tensor.
    """

    name: str
    first: int
    shape: tuple[int, ...]


def joined_tensors(shape: LlamaShape) -> dict[str, tuple[Part, ...]]:
    """By whole parameter, `<unit>.<parameter>`, the folder's tensors that it joins along dim 0, in order.

    In the order of the model; a tied weight is the embedding's.
    """
    hidden, q, kv, ffn = shape.hidden_size, shape.q_size, shape.kv_size, shape.ffn_size
    sizes: dict[str, dict[str, tuple[tuple[int, ...], ...]]] = {
        "embedding": {"tokens.weight": ((shape.vocab_size, hidden),)},
        "attn": {
            "norm.weight": ((hidden,),),
            "qkv.weight": ((q, hidden), (kv, hidden), (kv, hidden)),
            "output.weight": ((hidden, q),),
            **({"qkv.bias": ((q,), (kv,), (kv,))} if shape.qkv_bias else {}),
            **({f"{letter}_norm.weight": ((shape.head_dim,),) for letter in "qk"} if shape.qk_norm else {}),
        },
        "mlp": {
            "norm.weight": ((hidden,),),
            "gate_up.weight": ((ffn, hidden), (ffn, hidden)),
            "down.weight": ((hidden, ffn),),
        },
        "head": {
            "norm.weight": ((hidden,),),
            **({} if shape.tie_embeddings else {"output.weight": ((shape.vocab_size, hidden),)}),
        },
    }
    return {
        f"{unit}.{parameter}": _parts(names_of_unit(unit)[parameter], parts)
        for unit in shape.unit_names()
        for parameter, parts in sizes[unit.rpartition(".")[2]].items()
    }


def _parts(names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> tuple[Part, ...]:
    firsts = accumulate((shape[0] for shape in shapes), initial=0)
    return tuple(Part(name, first, shape) for name, first, shape in zip(names, firsts, shapes))
