"""A packed microbatch is its documents one at a time: loss and every gradient, whatever the attention's kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_runtime.data.sampler import Batches
from hybrid_runtime.deployment import parse_deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.models.attention import _all_at_once, causal_attention
from hybrid_runtime.models.build import build_units, model_units
from hybrid_runtime.models.unit import NO_TARGET, BuildContext, Documents, Microbatch, UnitSpec, refuse_unpackable
from hybrid_runtime.tensor_parallel.shard import iter_parameters
from tests.data.corpora import random_corpus
from tests.parity import SHAPE

KINDS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "every head its own, tied": {"num_kv_heads": 4, "tie_embeddings": True, "qkv_bias": True},
    "normed heads": {"qk_norm": True},
}


def loss_of(units: dict[str, nn.Module], microbatch: Microbatch) -> Tensor:
    carry: tuple[Tensor, ...] = ()
    for unit in units.values():
        carry = unit(carry, microbatch)
    return carry[0]


def gradients_of(units: dict[str, nn.Module]) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p, _ in iter_parameters(units) if p.grad is not None}
    for _, parameter, _ in iter_parameters(units):
        parameter.grad = None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_documents_one_at_a_time(tmp_path: Any, kind: str) -> None:
    settings = parse_deployment({"name": "x", "model": {"preset": "tiny", **SHAPE, **KINDS[kind]}}, source="test")
    units = build_units(model_units(settings.model, settings.shape), BuildContext(seed=3, dtype=torch.float32))
    batches = Batches(
        random_corpus(tmp_path / "c"), global_batch_size=6, microbatch_size=3, sequence_length=24, pack=True
    )
    packed = torch.zeros(())
    microbatches = batches.microbatches(0)
    for microbatch in microbatches:
        loss = loss_of(units, microbatch)
        loss.backward()
        packed += loss.detach()
    together = gradients_of(units)
    alone = torch.zeros(())
    for microbatch in microbatches:
        assert microbatch.documents is not None
        assert microbatch.targets is not None
        tokens = microbatch.tokens.flatten().split(list(microbatch.documents.lengths))
        targets = microbatch.targets.flatten().split(list(microbatch.documents.lengths))
        assert len(tokens) > 3
        for ids, wanted in zip(tokens, targets):
            count = len(ids) - int(wanted[-1] == NO_TARGET)
            if count == 0:
                continue
            loss = loss_of(units, Microbatch(ids[None, :count], wanted[None, :count]))
            loss.backward()
            alone += loss.detach()
    assert torch.allclose(packed, alone, rtol=1e-6)
    for name, expected in gradients_of(units).items():
        error = float((together[name] - expected).norm() / expected.norm())
        assert error <= 1e-5, f"{name}: relative error {error:.2e}"


def heads(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)


def documents_of(lengths: list[int], batch: int, device: str = "cpu") -> Documents:
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)
    positions = torch.cat([torch.arange(length) for length in lengths]).view(batch, -1).to(device)
    return Documents(positions, tuple(lengths), bounds)


def masked(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """The same by a whole mask."""
    number = (documents.positions.flatten() == 0).cumsum(0).view_as(documents.positions)
    mask = (number[:, :, None] == number[:, None, :]).tril().unsqueeze(1)
    y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return y.transpose(1, 2).flatten(2)


def compare_with_mask(device: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    documents = documents_of([3, 13, 16, 1, 1, 14], 3, device)
    q, k, v = heads(3, 4, 16, 16, device=device, dtype=dtype), *(heads(3, 2, 16, 16, device=device, dtype=dtype),) * 2
    results = []
    for attend in (causal_attention, masked):
        y = attend(q, k, v, documents)
        y.square().sum().backward()
        results.append([y.detach(), *(x.grad for x in (q, k))])
        q.grad = k.grad = None
    for found, expected in zip(*results):
        assert float((found - expected).norm() / expected.norm()) <= tolerance


def test_it_equals_attention_with_a_mask() -> None:
    compare_with_mask("cpu", torch.float32, 1e-6)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_kernel_for_all_documents_is_called_as_torch_wants_it(kv_heads: int) -> None:
    """Without a GPU: shapes and gradients only."""
    heads_NHD = torch.randn(32, 4 + 2 * kv_heads, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
    q, k, v = heads_NHD.split_with_sizes([4, kv_heads, kv_heads], dim=1)
    y = _all_at_once(q, k, v, documents_of([10, 6, 16], 2, "meta"))
    y.sum().backward()
    assert (y.shape, y.dtype) == ((32, 4, 16), torch.bfloat16)
    assert heads_NHD.grad is not None


@pytest.mark.gpu(1)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
def test_it_equals_attention_with_a_mask_on_a_gpu(dtype: torch.dtype, tolerance: float) -> None:
    compare_with_mask("cuda", dtype, tolerance)


def test_a_token_sees_nothing_of_another_document() -> None:
    q, k, v = heads(1, 4, 8, 16), heads(1, 2, 8, 16), heads(1, 2, 8, 16)
    documents = documents_of([3, 5], 1)
    causal_attention(q, k, v, documents)[:, 3:].sum().backward()
    assert k.grad is not None
    assert v.grad is not None
    assert not k.grad[:, :, :3].any()
    assert not v.grad[:, :, :3].any()


def test_units_that_do_not_keep_documents_apart_are_refused() -> None:
    packs = UnitSpec("a", lambda context: nn.Identity(), packs=True)
    refuse_unpackable([packs])
    with pytest.raises(
        PlanError, match=r"pack = true, but unit 'b' does not say that it keeps documents apart; let it"
    ):
        refuse_unpackable([packs, UnitSpec("b", lambda context: nn.Identity())])
