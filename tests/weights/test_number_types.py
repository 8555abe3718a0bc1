"""Numbers of one type as another: bit for bit what torch makes of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hybrid_runtime.weights.number_types import DTYPES, converted

TYPES = [getattr(torch, name) for name in DTYPES]
CODES = {getattr(torch, name): code for name, code in DTYPES.items()}


def numbers(dtype: torch.dtype) -> Tensor:
    special = torch.tensor([0.0, -0.0, 1.0, float("inf"), -float("inf"), 1.00390625, 1.01171875, 65504.0, 1e-7, 6e-39])
    return torch.cat([special, torch.randn(10_000, generator=torch.Generator().manual_seed(1))]).to(dtype)


def convert(values: Tensor, target: torch.dtype) -> Tensor:
    content = converted(values.view(torch.uint8).numpy().data, CODES[values.dtype], CODES[target])
    return torch.frombuffer(bytearray(content), dtype=target)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(TYPES, TYPES)))
def test_equal_to_torch(source: torch.dtype, target: torch.dtype) -> None:
    values = numbers(source)
    if target is torch.float16:
        values = values[values.isinf() | (values.abs().double() <= 65504)]
    expected = values.to(target) if target is not torch.bfloat16 else values.float().to(target)
    assert torch.equal(convert(values, target).view(torch.uint8), expected.view(torch.uint8))


def test_every_bfloat16_comes_back() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[~every.isnan()]
    assert torch.equal(convert(convert(every, torch.float32), torch.bfloat16), every)
    assert convert(torch.tensor([float("nan")]), torch.bfloat16).isnan().all()


def test_numbers_that_become_infinite_are_refused() -> None:
    for source, target in ((torch.float32, torch.float16), (torch.bfloat16, torch.float16)):
        with pytest.raises(OverflowError):
            convert(torch.tensor([7e4], dtype=source), target)
    with pytest.raises(OverflowError):
        convert(torch.tensor([3.4028e38]), torch.bfloat16)
