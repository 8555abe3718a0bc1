"""bfloat16 with master weights, and recomputation, on one GPU; `scripts/gpu_check` runs these where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybrid_runtime.data_parallel.buckets import GradientBuckets
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.unit import BuildContext, Microbatch
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.tensor_parallel.gradients import set_accumulate_in_place, weight_gradient
from hybrid_runtime.tensor_parallel.recompute import Recompute
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue
from hybrid_runtime.training.master_weights import MASTER, MasterAdamW

SHAPE = LlamaShape(
    vocab_size=512, hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, ffn_size=256
)


@pytest.mark.gpu(1)
def test_products_add_into_float32() -> None:
    """A thousand small products beside a large sum: in bfloat16 all of them would be lost."""
    weight = nn.Parameter(torch.zeros(64, 32, dtype=torch.bfloat16, device="cuda"))
    GradientBuckets([weight], wide=True)
    assert weight.grad is not None
    weight.grad.fill_(1000.0)
    x, dy = (torch.full((16, size), 0.25, dtype=torch.bfloat16, device="cuda") for size in (32, 64))
    for _ in range(1000):
        weight_gradient(weight, x, dy, in_place=True)
    torch.testing.assert_close(weight.grad, torch.full_like(weight.grad, 1000 + 1000 * 16 / 16))


def gradients(kind: RecomputeKind, dtype: torch.dtype) -> tuple[dict[str, Tensor], int]:
    """Of a Llama on one stage, backwards whole and split; and the bytes that F keeps, by the ledger."""
    device = torch.device("cuda")
    units = build_units(llama_units(SHAPE), BuildContext(device=device, dtype=dtype, seed=1))
    parameters = [parameter for unit in units.values() for parameter in unit.parameters()]
    buckets = GradientBuckets(parameters, wide=True)
    ledger = ByteLedger(parameters)
    for unit in units.values():
        set_accumulate_in_place(unit, True)
    stage = Stage(0, list(units.items()), training=True)
    stage.use_queue(WeightQueue(keep=ledger.keep))
    stage.recompute(Recompute(kind), list(units)[1:-1])
    ids = torch.randint(0, 512, (2, 65), generator=torch.Generator().manual_seed(0)).to(device)
    scale = (torch.tensor(0.01, device=device),)
    with ledger.watching():
        for index in range(2):
            stage.forward(index, (), Microbatch(ids[:, :-1], ids[:, 1:]))
            kept = ledger.in_use.activations
            (stage.backward if index == 0 else stage.input_gradient)(index, scale)
            stage.weight_gradient(index)
    torch.cuda.synchronize()
    assert ledger.in_use.activations == 0
    assert all(bucket.gradients.dtype == torch.float32 for bucket in buckets.buckets)
    named = {f"{name}.{own}": p for name, unit in units.items() for own, p in unit.named_parameters()}
    return {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}, kept


@pytest.mark.gpu(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_computed_again_is_the_same(dtype: torch.dtype) -> None:
    """To the rounding of attention's own backward, which adds in no fixed order on a GPU."""
    expected, kept = gradients("none", dtype)
    for kind in ("selective", "full"):
        found, less = gradients(kind, dtype)
        assert less < kept
        for name, gradient in expected.items():
            error = float((found[name] - gradient).norm() / gradient.norm())
            assert error <= (1e-5 if dtype == torch.float32 else 1e-2), (kind, name)


@pytest.mark.gpu(1)
def test_an_update_rounds_the_master_copy() -> None:
    weight = nn.Parameter(torch.ones(300, 7, dtype=torch.bfloat16, device="cuda"))
    GradientBuckets([weight], wide=True)
    optimizer = MasterAdamW({weight: 0.0}, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(100):
        assert weight.grad is not None
        weight.grad.fill_(1.0)
        optimizer.step(1e-4)
    master = optimizer.state[weight][MASTER]
    torch.testing.assert_close(master, torch.full_like(master, 0.99), rtol=1e-4, atol=0)
    assert torch.equal(weight, master.to(torch.bfloat16))
