"""Token embedding with the vocabulary split over the tensor-parallel axis.

vocabulary   |  rows of rank 0  |  rows of rank 1  | pad
token 5      |  W[5]            |  0               |        summed over the ranks -> W[5] on both
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import start_all_reduce, start_gather_sequence, start_reduce_scatter_sequence
from hybrid_runtime.errors import UsageError
from hybrid_runtime.tensor_parallel.gradients import gradient_buffer
from hybrid_runtime.tensor_parallel.initialise import Init, draw_normal_, init_from_default_generator
from hybrid_runtime.tensor_parallel.shard import ShardSpec, split_evenly


def check_token_ids(ids: Tensor, vocab_size: int, what: str) -> None:
    """Refuses ids outside the vocabulary, which the masks of split vocabularies would silently read as zero rows.

    On CPU this costs microseconds. On GPUs it must not wait for the device, so there it is an assertion that the
    device makes; it surfaces as a CUDA error at the next synchronisation.

    Raises:
        UsageError: on CPU, an id is below 0 or not below `vocab_size`.
    """
    if ids.device.type == "cuda":
        torch._assert_async(((ids >= 0) & (ids < vocab_size)).all(), f"a {what} id is outside 0..{vocab_size - 1}")
    elif ids.device.type != "meta" and ids.numel():
        low, high = (int(value) for value in torch.aminmax(ids))
        if low < 0 or high >= vocab_size:
            raise UsageError(
                f"{what} id {low if low < 0 else high} is outside the vocabulary of {vocab_size} "
                f"(0..{vocab_size - 1}); use the tokenizer that belongs to this model, or raise vocab_size"
            )


class VocabParallelEmbedding(nn.Module):
    """tokens (B, S) -> (B, S, H), or (B, S/T, H) with sequence parallelism. Weight (V/T, H), padded with zero rows.

    Args:
        vocab_size: V, rounded up to what the ranks divide.
        hidden_size: H.
        axis: the tensor-parallel axis.
        init: of the weight; None draws a seed from torch's default generator.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        axis: Axis,
        *,
        sequence_parallel: bool = False,
        init: Init | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        segments = split_evenly("vocabulary", [vocab_size], axis, padded=True)
        self.axis = axis
        self.vocab_size = vocab_size
        self.first_row = segments[0].start
        self.sequence_parallel = sequence_parallel
        self.accumulate_in_place = False
        self.shards = {"weight": ShardSpec(global_shape=(vocab_size, hidden_size), dim=0, segments=segments)}
        self.weight = nn.Parameter(torch.empty(self.shards["weight"].local_shape, device=device, dtype=dtype))
        draw_normal_(self.weight, self.shards["weight"], init or init_from_default_generator(), "weight")

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Embeds token ids.

        Raises:
            UsageError: on CPU, a token id is outside the vocabulary.
            PlanError: sequence parallelism cannot split the sequence.
        """
        check_token_ids(tokens_BS, self.vocab_size, "token")
        y: Tensor = _Embedding.apply(tokens_BS, self.weight, self)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        return f"{self.vocab_size} tokens, here {self.weight.shape[0]} from {self.first_row}"


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_BS: Tensor, weight: Tensor, layer: VocabParallelEmbedding) -> Tensor:
        rows_BS, elsewhere_BS = rows_here(tokens_BS, layer.first_row, weight.shape[0], layer.axis)
        ctx.save_for_backward(rows_BS, elsewhere_BS)
        ctx.weight, ctx.layer = weight, layer  # not a saved tensor: backward needs its .grad
        y = nn.functional.embedding(rows_BS, weight)
        if elsewhere_BS is not None:
            y.masked_fill_(elsewhere_BS.unsqueeze(-1), 0)
        return (start_reduce_scatter_sequence if layer.sequence_parallel else start_all_reduce)(y, layer.axis).wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor | None, None]:
        rows_BS, elsewhere_BS = ctx.saved_tensors
        if ctx.layer.sequence_parallel:
            dy = start_gather_sequence(dy, ctx.layer.axis).wait()
        if elsewhere_BS is not None:
            dy = dy.masked_fill(elsewhere_BS.unsqueeze(-1), 0)
        in_place = ctx.layer.accumulate_in_place
        dw = gradient_buffer(ctx.weight) if in_place else torch.zeros_like(ctx.weight)
        dw.index_add_(0, rows_BS.flatten(), dy.reshape(-1, dy.shape[-1]))
        return None, None if in_place else dw, None


def rows_here(ids: Tensor, first: int, count: int, axis: Axis) -> tuple[Tensor, Tensor | None]:
    """Local row of every id, and where the row lies on another rank (row 0 stands in there); None when all are here."""
    if axis.size == 1:
        return ids, None
    rows = ids - first
    elsewhere = (rows < 0) | (rows >= count)
    return rows.masked_fill_(elsewhere, 0), elsewhere
