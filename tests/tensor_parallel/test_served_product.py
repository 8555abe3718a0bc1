"""The products of a prefill and a decode are the plain ones, whichever way they are computed."""

from __future__ import annotations

import pytest
import torch

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear
from hybrid_runtime.tensor_parallel.served_product import served_product


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 8, 9, 33])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 24), (512, 40), (513, 2047), (520, 2048), (600, 2500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_plain_product(tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(0)
    x_NI = torch.randn(tokens, inputs, generator=drawn).to(dtype)
    weight_OI = torch.randn(outputs, inputs, generator=drawn).to(dtype)
    bias_O = torch.randn(outputs, generator=drawn).to(dtype)
    for bias in (None, bias_O):
        found = served_product(x_NI, weight_OI, bias)
        plain = x_NI @ weight_OI.t() if bias is None else torch.addmm(bias, x_NI, weight_OI.t())
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)
        assert found.is_contiguous()


def test_layers_take_it_in_inference_mode_and_say_the_same() -> None:
    column, row = ColumnParallelLinear(6, 2100, Axis(), bias=True), RowParallelLinear(6, 10, Axis(), bias=True)
    for layer in (column, row):
        assert layer.bias is not None
        torch.nn.init.normal_(layer.bias)
        for tokens in (1, 5, 40):
            x = torch.randn(1, tokens, 6)
            with torch.inference_mode():
                served = layer(x)
            torch.testing.assert_close(served, layer(x))
