"""Cross-entropy of logits whose vocabulary is split over the tensor-parallel axis; whole logits exist nowhere.

Each rank reduces its own columns to three numbers a token and one all-gather of (T, 3, N) does the rest:

    rank t     m_t = max, s_t = sum exp(x - m_t), g_t = logit of the target if it is here, else 0
    all ranks  M = max m_t,  S = sum s_t exp(m_t - M),  loss = M - sum g_t + ln S

One message instead of the usual two (a MAX and a SUM all-reduce), because here messages cost more than arithmetic.
Statistics are float32 whatever the logits are (float64 for float64).

Shapes: B microbatch, S sequence, N = B*S tokens, V vocabulary, T tp_degree.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import all_gather_stack
from hybrid_runtime.tensor_parallel.embedding import check_token_ids, rows_here


def vocab_parallel_cross_entropy(
    logits: Tensor, targets_BS: Tensor, vocab_size: int, axis: Axis, *, overwrite_logits: bool = False
) -> Tensor:
    """Loss of every token, equal on all ranks of the axis.

    Args:
        logits: (B, S, V/T) of this rank; columns past the vocabulary are padding and are ignored.
        targets_BS: int64 ids.
        vocab_size: V without padding.
        overwrite_logits: the caller does not use the logits again; saves their size in memory. (Had autograd saved
            them for somebody else, its version check would raise.)

    Returns:
        (B, S) losses, float32 (float64 for float64 logits).

    Raises:
        UsageError: on CPU, a target is outside the vocabulary.
    """
    check_token_ids(targets_BS, vocab_size, "target")
    losses: Tensor = _CrossEntropy.apply(logits, targets_BS, vocab_size, axis, overwrite_logits)  # type: ignore[no-untyped-call]
    return losses


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets_BS: Tensor, vocab_size: int, axis: Axis, overwrite_logits: bool
    ) -> Tensor:
        columns = logits.shape[-1]
        x_NV = logits.detach().reshape(-1, columns)
        wide = torch.promote_types(x_NV.dtype, torch.float32)
        if x_NV.dtype != wide or not overwrite_logits:
            x_NV = x_NV.to(wide, copy=True)
        first = axis.rank * columns
        real = max(0, min(columns, vocab_size - first))
        x_NV[:, real:] = -torch.inf  # padding: exp gives exactly 0, and so does the gradient
        rows_N, elsewhere_N = rows_here(targets_BS.reshape(-1), first, columns, all_here=axis.size == 1)
        target_N = x_NV.gather(1, rows_N.unsqueeze(1)).squeeze(1)
        if elsewhere_N is not None:
            target_N.masked_fill_(elsewhere_N, 0)
        max_N = x_NV.amax(1)
        if real:  # on a rank of padding only, -inf - -inf would be nan
            x_NV.sub_(max_N.unsqueeze(1))
        exp_NV = x_NV.exp_()
        scale_N, loss_N = _join(max_N, exp_NV.sum(1), target_N, axis)
        ctx.save_for_backward(exp_NV, scale_N, rows_N, elsewhere_N)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        return loss_N.view(targets_BS.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BS: Tensor) -> tuple[Tensor, None, None, None, None]:
        exp_NV, scale_N, rows_N, elsewhere_N = ctx.saved_tensors
        dy_N = dy_BS.reshape(-1)
        # In place: nobody else holds this buffer, and a second backward through it fails autograd's version check.
        dx_NV = exp_NV.mul_((scale_N * dy_N).unsqueeze(1))
        minus_N = dy_N.neg() if elsewhere_N is None else dy_N.neg().masked_fill_(elsewhere_N, 0)
        dx_NV.scatter_add_(1, rows_N.unsqueeze(1), minus_N.unsqueeze(1))
        return dx_NV.to(ctx.dtype).view(ctx.shape), None, None, None, None


def _join(max_N: Tensor, sum_N: Tensor, target_N: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """(factor that turns this rank's exponentials into probabilities, loss), both per token."""
    max_TN, sum_TN, target_TN = all_gather_stack(torch.stack((max_N, sum_N, target_N)), axis).unbind(1)
    top_N = max_TN.amax(0)
    total_N = (sum_TN * (max_TN - top_N).exp_()).sum(0)
    loss_N = top_N - target_TN.sum(0) + total_N.log()
    return (max_N - top_N).exp_().div_(total_N), loss_N
