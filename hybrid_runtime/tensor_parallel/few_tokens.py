"""x W' for the few tokens of a decode on a CPU, where the library's own product wastes up to two thirds of the time.

    tokens x outputs     1      2..3    4..8          9..32   more
    inputs <= 512        x W'   (W x')' (W x')'       blocks  x W'
    more inputs          x W'   (W x')' blocks        blocks  x W'

One token is a matrix-vector product, which reads W as fast as memory gives it. With more, MKL's sgemm (torch 2.13, on
an AMD EPYC) seems to copy W for every product: that is spared where W is the left factor, and costs less in blocks of W
that stay in the cache. How much: benchmarks/NOTES.md. Whichever way is taken, a product differs in its last bits only.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEW_TOKENS = 32  # with more, nothing here differs from a plain product
_FEWER, _FEWEST = 8, 3
_NARROW_INPUTS = 512
_BLOCK = 1024  # outputs


def product_of_tokens(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """(N, O), contiguous; no gradient passes."""
    tokens, inputs = x_NI.shape
    outputs = len(weight_OI)
    if not 1 < tokens <= FEW_TOKENS or x_NI.device.type != "cpu" or x_NI.dtype != torch.float32:
        return x_NI.mm(weight_OI.t())
    if tokens <= (_FEWER if inputs <= _NARROW_INPUTS else _FEWEST):
        return weight_OI.mm(x_NI.t()).t().contiguous()
    if outputs < 2 * _BLOCK:
        return x_NI.mm(weight_OI.t())
    y_NO = x_NI.new_empty(tokens, outputs)
    for first in range(0, outputs, _BLOCK):
        block = slice(first, first + _BLOCK)
        torch.mm(x_NI, weight_OI[block].t(), out=y_NO[:, block])
    return y_NO
