"""The next token of every sequence, from logits whose vocabulary is split over the tensor-parallel axis.

    greedy     each rank's largest logit and its id are told to all, and the largest of them is taken: two numbers a row
    sampled    the row's logits are gathered; temperature, then top_k, then top_p (the order of transformers' warpers);
               then the first id at which the cumulated probability, in order of ids, exceeds u

u of token j of request r is a number of Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with
the key (seed, r) and the counter j. So it does not depend on what is drawn beside it, on the batch or on the mesh. The
order of ids matters: on another mesh logits differ in their last bits, which may exchange two neighbours in an order of
probabilities, but moves a cumulated one by no more than they differ.

All logits equal to the k-th largest are kept, as transformers keeps them. Of equally likely tokens, top_p takes those
with the lowest ids. What a rank's padding holds is never looked at.

Shapes: R rows, V vocabulary, v its columns on this rank (padding included), T ranks of the axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import all_gather_stack, all_reduce
from hybrid_runtime.serving.requests import NOT_FINITE, Row, Sampling

_WORD = (1 << 64) - 1


def sample(
    logits_Rv: Tensor, rows: Sequence[Row], samplings: Sequence[Sampling], vocab_size: int, axis: Axis
) -> list[int]:
    """Every rank of the axis calls it with its columns, and gets the same tokens.

    Args:
        logits_Rv: of the last token of each row; any floating type, computed with in float64.
        rows: of which a token is wanted, in the order of the logits.
        samplings: how, for each row.
        vocab_size: V without padding.

    Returns:
        A token id per row; NOT_FINITE where the largest logit is nan or infinite.
    """
    columns = logits_Rv.shape[1]
    first = axis.rank * columns
    real_Rv = logits_Rv[:, : max(0, min(columns, vocab_size - first))]
    tokens = [NOT_FINITE] * len(rows)
    greedy = [index for index, sampling in enumerate(samplings) if sampling.temperature == 0]
    drawn = [index for index, sampling in enumerate(samplings) if sampling.temperature > 0]
    if greedy:
        for index, token in zip(greedy, _most_likely(_some(real_Rv, greedy), first, axis)):
            tokens[index] = token
    if drawn:
        logits_RV = _whole(_some(logits_Rv, drawn), vocab_size, axis)
        numbers = [uniform(samplings[index].seed, rows[index].request, rows[index].answer_index) for index in drawn]
        for index, token in zip(drawn, _drawn(logits_RV, [samplings[index] for index in drawn], numbers)):
            tokens[index] = token
    return tokens


def uniform(seed: int, request: int, answer_index: int) -> float:
    """The number in [0, 1) that token `answer_index` of a request is drawn with."""
    key = np.array([seed & _WORD, request & _WORD], dtype=np.uint64)
    counter = np.array([answer_index, 0, 0, 0], dtype=np.uint64)
    return float(int(np.random.Philox(key=key, counter=counter).random_raw()) >> 11) * 2.0**-53


def probabilities(logits_RV: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """What tokens are drawn by: (R, V) in float64, 0 for those that top_k and top_p leave out.

    Args:
        logits_RV: whole rows, each with a finite largest logit.
        samplings: of each row; none with temperature 0.
    """
    temperature_R = logits_RV.new_tensor([sampling.temperature for sampling in samplings], dtype=torch.float64)
    scaled_RV = logits_RV.to(torch.float64)
    # The largest becomes 0 first: the smallest temperatures would make infinities of a difference otherwise finite.
    scaled_RV = (scaled_RV - scaled_RV.amax(1, keepdim=True)) / temperature_R.unsqueeze(1)
    for row_V, sampling in zip(scaled_RV, samplings):
        if sampling.top_k is not None and sampling.top_k < len(row_V):
            row_V.masked_fill_(row_V < row_V.topk(sampling.top_k).values[-1], -torch.inf)
        if sampling.top_p is not None and sampling.top_p < 1:
            _keep_nucleus_(row_V, sampling.top_p)
    return scaled_RV.softmax(1)


def _keep_nucleus_(scaled_V: Tensor, top_p: float) -> None:
    """Minus infinity for all but the most likely tokens that together have the probability `top_p`; one at least."""
    sorted_V, order_V = scaled_V.sort(descending=True, stable=True)
    likely_V = sorted_V.softmax(0)
    before_V = likely_V.cumsum(0) - likely_V
    scaled_V[order_V[1:][before_V[1:] >= top_p]] = -torch.inf


def _most_likely(real_Rv: Tensor, first: int, axis: Axis) -> list[int]:
    """The ids of the largest logits over all ranks, the lowest of equals."""
    best_2R = real_Rv.new_full((2, len(real_Rv)), -torch.inf, dtype=torch.float64)
    if real_Rv.shape[1]:
        largest_R, column_R = real_Rv.max(1)  # nan if there is one; the first of equals
        best_2R[0], best_2R[1] = largest_R, column_R + first
    values_TR, ids_TR = _everyones(best_2R, axis).unbind(1)
    top_R = values_TR.amax(0)
    ids_R = torch.where(values_TR == top_R, ids_TR, torch.inf).amin(0)
    return [int(token) for token in torch.where(top_R.isfinite(), ids_R, NOT_FINITE).tolist()]


def _everyones(x: Tensor, axis: Axis) -> Tensor:
    """(T, *x.shape): every rank's small `x`, gathered as a sum in which the others have 0 in a rank's place.

    Ranks of one host sum in shared memory; gathering would wake the backend's threads for it, ten times as long.
    """
    if axis.size == 1:
        return x.unsqueeze(0)
    places = x.new_zeros(axis.size, *x.shape)
    places[axis.rank] = x
    return all_reduce(places, axis)


def _drawn(logits_RV: Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> list[int]:
    finite = logits_RV.amax(1).isfinite().tolist()
    fit = [index for index, is_finite in enumerate(finite) if is_finite]
    tokens = [NOT_FINITE] * len(samplings)
    if fit:
        cumulated_RV = probabilities(_some(logits_RV, fit), [samplings[index] for index in fit]).cumsum(1)
        total_R = cumulated_RV[:, -1]
        wanted_R = total_R * total_R.new_tensor([numbers[index] for index in fit])
        below_R = torch.minimum(wanted_R, total_R.nextafter(torch.zeros_like(total_R)))  # u near 1, rounded up to all
        found_R = torch.searchsorted(cumulated_RV, below_R.unsqueeze(1), right=True).squeeze(1)
        for index, token in zip(fit, found_R.tolist()):
            tokens[index] = token
    return tokens


def _whole(logits_Rv: Tensor, vocab_size: int, axis: Axis) -> Tensor:
    """(R, V): every rank's columns side by side, without padding."""
    return all_gather_stack(logits_Rv, axis).transpose(0, 1).reshape(len(logits_Rv), -1)[:, :vocab_size]


def _some(x_R: Tensor, indices: Sequence[int]) -> Tensor:
    """Those rows; the tensor itself where they are all of them."""
    return x_R if len(indices) == len(x_R) else x_R[list(indices)]
