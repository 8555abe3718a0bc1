"""x W' + b where requests are served on a CPU: as long as one token needs, or less than the library's product needs.

    tokens x outputs        1        2..3      4..8                    more
    up to 512 inputs        x W'     (W x')'   (W x')'                 x W', from 2,048 outputs on in blocks of 1,024
    more inputs             x W'     (W x')'   x W', in blocks too     the same

One token is a matrix-vector product, which reads W as fast as memory gives it. With more, MKL's sgemm (torch 2.13, on
an AMD EPYC) seems to copy W for every product: that is spared where W is the left factor, and costs less in blocks of W
that stay in the cache. How much: benchmarks/NOTES.md. Whichever way is taken, a product differs in its last bits only.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FEW, _FEWEST = 8, 3  # tokens
_NARROW = 512  # inputs
_BLOCK = 1024  # outputs


def served_product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """(N, O), contiguous; for inference mode."""
    tokens, inputs = x_NI.shape
    outputs = len(weight_OI)
    if x_NI.device.type != "cpu" or x_NI.dtype != torch.float32 or tokens == 1:
        return _product(x_NI, weight_OI.t(), bias_O)
    if tokens <= (_FEW if inputs <= _NARROW else _FEWEST):
        y_ON = _product(weight_OI, x_NI.t(), None if bias_O is None else bias_O.unsqueeze(1))
        return y_ON.t().contiguous()
    if outputs < 2 * _BLOCK:
        return _product(x_NI, weight_OI.t(), bias_O)
    y_NO = x_NI.new_empty(tokens, outputs)
    for first in range(0, outputs, _BLOCK):
        block = slice(first, first + _BLOCK)
        _product(x_NI, weight_OI[block].t(), None if bias_O is None else bias_O[block], out=y_NO[:, block])
    return y_NO


def _product(a: Tensor, b: Tensor, addend: Tensor | None, out: Tensor | None = None) -> Tensor:
    return torch.mm(a, b, out=out) if addend is None else torch.addmm(addend, a, b, out=out)
