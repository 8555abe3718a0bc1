"""The peer's model: a plain PyTorch Llama as a list of blocks, written the way torch's own tutorials write one.

The architecture of `hybrid_runtime.models` (RMSNorm, rotary positions, SwiGLU, untied head, no biases), without its
code. Blocks have the names of `LlamaShape.unit_names()`, so both sides can be cut at the same places.

Shapes: B microbatch, S sequence, H hidden, N heads on this rank, D width of a head, F ffn on this rank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_runtime.shapes import LlamaShape


class Embedding(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        x_BSH: Tensor = self.tokens(tokens_BS)
        return x_BSH


class Attention(nn.Module):
    """Multi-head attention with one fused projection."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.qkv = nn.Linear(shape.hidden_size, 3 * shape.q_size, bias=False)
        self.out = nn.Linear(shape.q_size, shape.hidden_size, bias=False)

    def forward(self, h_BSH: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
        batch, length, _ = h_BSH.shape
        qkv = self.qkv(h_BSH).view(batch, length, 3, -1, self.head_dim)
        q_BNSD, k_BNSD, v_BNSD = (part.transpose(1, 2) for part in qkv.unbind(2))
        q_BNSD, k_BNSD = _rotate(q_BNSD, cos_SD, sin_SD), _rotate(k_BNSD, cos_SD, sin_SD)
        mixed_BNSD = F.scaled_dot_product_attention(q_BNSD, k_BNSD, v_BNSD, is_causal=True)
        out_BSH: Tensor = self.out(mixed_BNSD.transpose(1, 2).reshape(batch, length, -1))
        return out_BSH


class AttentionBlock(nn.Module):
    cos_SD: Tensor
    sin_SD: Tensor

    def __init__(self, shape: LlamaShape, sequence_length: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.attention = Attention(shape)
        cos_SD, sin_SD = _rotary(shape, sequence_length)
        self.register_buffer("cos_SD", cos_SD, persistent=False)
        self.register_buffer("sin_SD", sin_SD, persistent=False)

    def forward(self, x_BSH: Tensor) -> Tensor:
        mixed_BSH: Tensor = self.attention(self.norm(x_BSH), self.cos_SD, self.sin_SD)
        return x_BSH + mixed_BSH


class Mlp(nn.Module):
    """SwiGLU with one fused projection for gate and up."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_up = nn.Linear(shape.hidden_size, 2 * shape.ffn_size, bias=False)
        self.down = nn.Linear(shape.ffn_size, shape.hidden_size, bias=False)

    def forward(self, h_BSH: Tensor) -> Tensor:
        gate_BSF, up_BSF = self.gate_up(h_BSH).chunk(2, dim=-1)
        out_BSH: Tensor = self.down(F.silu(gate_BSF) * up_BSF)
        return out_BSH


class MlpBlock(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x_BSH: Tensor) -> Tensor:
        out_BSH: Tensor = self.mlp(self.norm(x_BSH))
        return x_BSH + out_BSH


class Head(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps)
        self.output = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def forward(self, x_BSH: Tensor) -> Tensor:
        logits_BSV: Tensor = self.output(self.norm(x_BSH))
        return logits_BSV


def build_blocks(
    shape: LlamaShape, names: Sequence[str], weights: Mapping[str, Tensor], sequence_length: int, tp_degree: int
) -> nn.ModuleDict:
    """The named blocks, in order, holding the given weights (Hugging Face names, whole tensors).

    The rows of fused projections are ordered so that a contiguous split over `tp_degree` ranks, which is what torch's
    ColwiseParallel does, gives each rank its part of q, then k, then v (and of gate, then up).
    """
    blocks = nn.ModuleDict()
    for name in names:
        block = _block(shape, name, sequence_length)
        block.load_state_dict(dict(_weights_of(name, weights, tp_degree)), strict=True)
        blocks[name.replace(".", "/")] = block
    return blocks


def _block(shape: LlamaShape, name: str, sequence_length: int) -> nn.Module:
    if name == "embedding":
        return Embedding(shape)
    if name == "head":
        return Head(shape)
    return AttentionBlock(shape, sequence_length) if name.endswith(".attn") else MlpBlock(shape)


def random_weights(shape: LlamaShape, seed: int) -> dict[str, Tensor]:
    """All weights of the model in Hugging Face names: normal with deviation 0.02, norms one."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.empty(size).normal_(std=0.02, generator=draw)

    hidden, ffn = shape.hidden_size, shape.ffn_size
    weights = {"model.embed_tokens.weight": normal(shape.vocab_size, hidden)}
    for k in range(shape.num_layers):
        layer = f"model.layers.{k}"
        for name in ("q_proj", "k_proj", "v_proj"):
            weights[f"{layer}.self_attn.{name}.weight"] = normal(shape.q_size, hidden)
        weights[f"{layer}.self_attn.o_proj.weight"] = normal(hidden, shape.q_size)
        weights[f"{layer}.mlp.gate_proj.weight"] = normal(ffn, hidden)
        weights[f"{layer}.mlp.up_proj.weight"] = normal(ffn, hidden)
        weights[f"{layer}.mlp.down_proj.weight"] = normal(hidden, ffn)
        weights[f"{layer}.input_layernorm.weight"] = torch.ones(hidden)
        weights[f"{layer}.post_attention_layernorm.weight"] = torch.ones(hidden)
    weights["model.norm.weight"] = torch.ones(hidden)
    weights["lm_head.weight"] = normal(shape.vocab_size, hidden)
    return weights


def _weights_of(name: str, weights: Mapping[str, Tensor], tp_degree: int) -> Iterator[tuple[str, Tensor]]:
    """A block's state dict from the whole model's weights."""
    if name == "embedding":
        yield "tokens.weight", weights["model.embed_tokens.weight"]
        return
    if name == "head":
        yield "norm.weight", weights["model.norm.weight"]
        yield "output.weight", weights["lm_head.weight"]
        return
    layer = f"model.layers.{name.partition('.')[0]}"
    if name.endswith(".attn"):
        qkv = [weights[f"{layer}.self_attn.{part}_proj.weight"] for part in "qkv"]
        yield "norm.weight", weights[f"{layer}.input_layernorm.weight"]
        yield "attention.qkv.weight", _fuse(qkv, tp_degree)
        yield "attention.out.weight", weights[f"{layer}.self_attn.o_proj.weight"]
    else:
        gate_up = [weights[f"{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
        yield "norm.weight", weights[f"{layer}.post_attention_layernorm.weight"]
        yield "mlp.gate_up.weight", _fuse(gate_up, tp_degree)
        yield "mlp.down.weight", weights[f"{layer}.mlp.down_proj.weight"]


def _fuse(parts: Sequence[Tensor], tp_degree: int) -> Tensor:
    by_rank = zip(*(part.chunk(tp_degree) for part in parts))
    return torch.cat([piece for pieces in by_rank for piece in pieces])


def _rotary(shape: LlamaShape, length: int) -> tuple[Tensor, Tensor]:
    frequency = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angle = torch.outer(torch.arange(length).float(), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def _rotate(x_BNSD: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
    first, second = x_BNSD.chunk(2, dim=-1)
    return x_BNSD * cos_SD + torch.cat((-second, first), dim=-1) * sin_SD
