"""The product of a decode's few tokens is the plain one, whichever way it is computed."""

from __future__ import annotations

import pytest
import torch

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.tensor_parallel.few_tokens import FEW_TOKENS, product_of_tokens
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 8, 9, FEW_TOKENS, FEW_TOKENS + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 24), (512, 40), (513, 2047), (520, 2048), (600, 2500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_plain_product(tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(0)
    x_NI = torch.randn(tokens, inputs, generator=drawn).to(dtype)
    weight_OI = torch.randn(outputs, inputs, generator=drawn).to(dtype)
    found = product_of_tokens(x_NI, weight_OI)
    torch.testing.assert_close(found, x_NI @ weight_OI.t(), rtol=1e-4, atol=1e-3)
    assert found.is_contiguous()


def test_a_bias_is_added_to_few_and_to_many() -> None:
    layer = ColumnParallelLinear(6, 10, Axis(), bias=True)
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias)
    for tokens in (1, 5, FEW_TOKENS + 1):
        x = torch.randn(1, tokens, 6)
        torch.testing.assert_close(layer(x), x @ layer.weight.t() + layer.bias)
