"""Token embedding with the vocabulary split over the tensor-parallel axis.

vocabulary   |  rows of rank 0  |  rows of rank 1  | pad
token 5      |  W[5]            |  0               |        summed over the ranks -> W[5] on both

Rows may be spread over pipeline ranks too: each then holds a slice of every tensor rank's rows (`EmbeddingRows`), and
`SummedRows` does on the first stage what is left, once the pipeline ranks' results are added up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import (
    reduce_scatter_sequence,
    start_all_reduce,
    start_gather_sequence,
    start_reduce_scatter_sequence,
    sum_forward,
)
from hybrid_runtime.errors import UsageError
from hybrid_runtime.tensor_parallel.applied import applied
from hybrid_runtime.tensor_parallel.gradients import gradient_buffer
from hybrid_runtime.tensor_parallel.initialise import Init, draw_normal_, init_from_default_generator
from hybrid_runtime.tensor_parallel.shard import Segment, ShardSpec, split_evenly


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


class EmbeddingRows(nn.Module):
    """tokens (B, S) -> (B, S, H): rows that lie here, zeros for all other tokens. Nothing is summed. Weight (rows, H).

    Args:
        vocab_size: V of the whole embedding, rounded up to what the ranks divide.
        hidden_size: H.
        axis: the tensor-parallel axis.
        rows: start and stop in the padded V: of each tensor rank's V/T rows, the slice start/T .. stop/T; None for all.
        init: of the weight; None draws a seed from torch's default generator.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        axis: Axis,
        *,
        rows: tuple[int, int] | None = None,
        init: Init | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        (share,) = split_evenly("vocabulary", [vocab_size], axis, padded=True)
        start, stop = (0, share.length) if rows is None else (row // axis.size for row in rows)
        self.axis = axis
        self.vocab_size = vocab_size
        self.first_row = share.start + start
        self.num_rows = stop - start
        self.holds_all = axis.size == 1 and self.num_rows == vocab_size
        self.offset = 0  # of the first row in the weight, which may be a larger one that is shared
        self.accumulate_in_place = False
        segments = (Segment(self.first_row, self.num_rows),)
        self.shards = {"weight": ShardSpec(global_shape=(vocab_size, hidden_size), dim=0, segments=segments)}
        self.weight = nn.Parameter(torch.empty(self.shards["weight"].local_shape, device=device, dtype=dtype))
        draw_normal_(self.weight, self.shards["weight"], init or init_from_default_generator(), "weight")

    @torch.no_grad()
    def share_rows(self, weight: nn.Parameter, spec: ShardSpec, first: int) -> None:
        """Looks up in a larger weight from now on, whose rows from `first` on get the values of its own."""
        weight.narrow(0, first, self.num_rows).copy_(self.weight)
        self.weight, self.offset, self.shards = weight, first, {"weight": spec}

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Looks token ids up.

        Raises:
            UsageError: on CPU, a token id is outside the vocabulary.
            PlanError: sequence parallelism cannot split the sequence.
        """
        check_token_ids(tokens_BS, self.vocab_size, "token")
        y: Tensor = applied(_Embedding, tokens_BS, self.weight, self)
        return y

    def sum_of(self, y_BSH: Tensor) -> Tensor:
        """What becomes of the looked-up rows."""
        return y_BSH

    def whole_gradient(self, dy: Tensor) -> Tensor:
        """(B, S, H) of the gradient of `sum_of`."""
        return dy

    def extra_repr(self) -> str:
        return f"{self.vocab_size} tokens, here {self.num_rows} from {self.first_row}"


class VocabParallelEmbedding(EmbeddingRows):
    """tokens (B, S) -> (B, S, H), or (B, S/T, H) with sequence parallelism. Weight (V/T, H), padded with zero rows."""

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
        super().__init__(vocab_size, hidden_size, axis, init=init, device=device, dtype=dtype)
        self.sequence_parallel = sequence_parallel

    def sum_of(self, y_BSH: Tensor) -> Tensor:
        """The sum over the axis, in place."""
        start = start_reduce_scatter_sequence if self.sequence_parallel else start_all_reduce
        return start(y_BSH, self.axis).wait()

    def whole_gradient(self, dy: Tensor) -> Tensor:
        return start_gather_sequence(dy, self.axis).wait() if self.sequence_parallel else dy


class SummedRows(nn.Module):
    """(B, S, H) of this tensor rank, summed over the pipeline -> the same (B, S, H) on all ranks of the axis, or
    (B, S/T, H) with sequence parallelism.

    Raises:
        PlanError: sequence parallelism cannot split the sequence.
    """

    def __init__(self, axis: Axis, *, sequence_parallel: bool = False) -> None:
        super().__init__()
        self.axis = axis
        self.sequence_parallel = sequence_parallel

    def forward(self, x_BSH: Tensor) -> Tensor:
        return (reduce_scatter_sequence if self.sequence_parallel else sum_forward)(x_BSH, self.axis)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_BS: Tensor, weight: Tensor, layer: EmbeddingRows) -> Tensor:
        rows_BS, elsewhere_BS = rows_here(tokens_BS, layer.first_row, layer.num_rows, all_here=layer.holds_all)
        ctx.save_for_backward(rows_BS, elsewhere_BS)
        ctx.weight, ctx.layer = weight, layer  # not a saved tensor: backward needs its .grad
        y = nn.functional.embedding(rows_BS, weight.narrow(0, layer.offset, layer.num_rows))
        if elsewhere_BS is not None:
            y.masked_fill_(elsewhere_BS.unsqueeze(-1), 0)
        return layer.sum_of(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor | None, None]:
        rows_BS, elsewhere_BS = ctx.saved_tensors
        layer: EmbeddingRows = ctx.layer
        dy = layer.whole_gradient(dy)
        if elsewhere_BS is not None:
            dy = dy.masked_fill(elsewhere_BS.unsqueeze(-1), 0)
        in_place = layer.accumulate_in_place
        dw = gradient_buffer(ctx.weight) if in_place else torch.zeros_like(ctx.weight)
        rows = dw.narrow(0, layer.offset, layer.num_rows)
        rows.index_add_(0, rows_BS.flatten(), dy.reshape(-1, dy.shape[-1]).to(rows.dtype))
        return None, None if in_place else dw, None


def rows_here(ids: Tensor, first: int, count: int, *, all_here: bool) -> tuple[Tensor, Tensor | None]:
    """Local row of every id, and where the row lies on another rank (row 0 stands in there); None when all are here."""
    if all_here:
        return ids, None
    rows = ids - first
    elsewhere = (rows < 0) | (rows >= count)
    return rows.masked_fill_(elsewhere, 0), elsewhere
