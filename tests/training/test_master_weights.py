"""bfloat16 parameters with float32 gradients, moments and master copies: nothing small is lost, on any mesh."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.data.opening import open_source
from hybrid_runtime.data_parallel.buckets import GradientBuckets
from hybrid_runtime.deployment import Data
from hybrid_runtime.errors import DeploymentError
from hybrid_runtime.models.rms_norm import RMSNorm
from hybrid_runtime.tensor_parallel.embedding import VocabParallelEmbedding
from hybrid_runtime.tensor_parallel.gradients import set_accumulate_in_place
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear
from hybrid_runtime.tensor_parallel.shard import iter_parameters
from hybrid_runtime.training.master_weights import MASTER, MasterAdamW
from tests.commands import ROOT, environment
from tests.parity import deployment
from tests.ranks import run_ranks
from tests.training.alone import Rank, alone, together

HALF = torch.bfloat16
RATE, DECAY = 1e-3, 0.1
SETTINGS: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8}

STEPS = 25
OFF = {"master_weights": False}


def torchs(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY, fused=True, **SETTINGS)


class Layers(nn.Module):
    """Everything that makes gradients: this package's layers, and plain torch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.tokens = VocabParallelEmbedding(11, 8, Axis(), dtype=HALF)
        self.norm = RMSNorm(8, 1e-5, dtype=HALF)
        self.up = ColumnParallelLinear(8, 12, Axis(), bias=True, dtype=HALF)
        self.plain = nn.Linear(12, 3, dtype=HALF)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.plain(self.up(self.norm(self.tokens(tokens)))).float().square().sum()


def wide_gradients(model: nn.Module) -> GradientBuckets:
    set_accumulate_in_place(model, True)
    return GradientBuckets(model.parameters(), wide=True)


def test_gradients_of_all_layers_add_up_in_float32() -> None:
    model = Layers()
    buckets = wide_gradients(model)
    single: dict[str, list[Tensor]] = {}
    rounds = [torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(k)) for k in range(6)]
    for tokens in rounds:
        buckets.zero()
        model(tokens).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            single.setdefault(name, []).append(parameter.grad.clone())
    buckets.zero()
    for tokens in rounds:
        model(tokens).backward()
    own = {bucket.gradients.untyped_storage().data_ptr() for bucket in buckets.buckets}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.untyped_storage().data_ptr() in own, f"{name}: autograd put another tensor in its place"
        torch.testing.assert_close(parameter.grad, torch.stack(single[name]).sum(0), rtol=1e-5, atol=1e-6, msg=name)
        assert not torch.equal(parameter.grad, parameter.grad.to(HALF).float()), f"{name} was rounded"


def test_an_update_is_torchs_own_on_the_master_copy() -> None:
    generator = torch.Generator().manual_seed(1)
    ours = [nn.Parameter(torch.randn(size, generator=generator).to(HALF)) for size in ((4, 6), (7,))]
    theirs = [nn.Parameter(parameter.detach().float()) for parameter in ours]
    GradientBuckets(ours, wide=True)
    one, other = MasterAdamW(dict.fromkeys(ours, DECAY), **SETTINGS), torchs(theirs)
    for _ in range(5):
        for mine, reference in zip(ours, theirs):
            reference.grad = torch.randn(mine.shape, generator=generator)
            assert mine.grad is not None
            mine.grad.copy_(reference.grad)
        one.step(RATE)
        other.step()
    for mine, reference in zip(ours, theirs):
        assert torch.equal(one.state[mine][MASTER], reference)
        assert torch.equal(mine, reference.to(HALF))
        assert {one.state[mine][name].dtype for name in ("exp_avg", "exp_avg_sq", MASTER)} == {torch.float32}


def test_without_wide_gradients_it_is_torchs_adamw() -> None:
    for dtype in (torch.float32, HALF):
        ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 12).to(dtype)) for _ in range(2))
        GradientBuckets([ours])
        one, other = MasterAdamW({ours: DECAY}, **SETTINGS), torchs([theirs])
        for _ in range(3):
            theirs.grad = torch.linspace(2, -1, 12).to(dtype)
            assert ours.grad is not None
            ours.grad.copy_(theirs.grad)
            one.step(RATE)
            other.step()
        assert torch.equal(ours, theirs)
        assert set(one.state[ours]) == set(other.state[theirs]) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize(("wide", "moved"), [(True, 0.01), (False, 0.0)])
def test_steps_below_the_rounding_add_up(wide: bool, moved: float) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=HALF))
    GradientBuckets([weight], wide=wide)
    optimizer = MasterAdamW({weight: 0.0}, **SETTINGS)
    for _ in range(100):
        assert weight.grad is not None
        weight.grad.fill_(1.0)
        optimizer.step(1e-4)
    assert 1 - weight[0].item() == pytest.approx(moved, abs=2**-8), "bfloat16 below 1 has steps of 1/256"


def test_two_decays_beside_each_other() -> None:
    ours, theirs = ([nn.Parameter(torch.linspace(-1, 1, 12)) for _ in range(2)] for _ in range(2))
    one, other = MasterAdamW({ours[0]: DECAY, ours[1]: 0.0}, **SETTINGS), torchs(theirs)
    other.param_groups[0]["params"] = theirs[:1]
    other.add_param_group({"params": theirs[1:], "weight_decay": 0.0})
    for rate in (RATE, RATE / 2):
        for group in other.param_groups:
            group["lr"] = rate
        for parameter in (*ours, *theirs):
            parameter.grad = torch.linspace(2, -1, 12)
        one.step(rate)
        other.step()
    assert all(map(torch.equal, ours, theirs))
    assert not torch.equal(*ours)


def test_training_imports_no_compiler() -> None:
    """torch._dynamo would take every rank's start two seconds more; torch's optimizers import it."""
    code = (
        "import sys; from tests.training.alone import alone; from tests.parity import deployment; "
        "alone(deployment()).train(2); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment(), timeout=60)


def bfloat16(**changes: Any) -> Any:
    return deployment(model={"dtype": "bfloat16", **changes.pop("model", {})}, **changes)


def test_bytes_of_every_kind() -> None:
    """2 of parameters, 4 of gradients, 12 of optimizer, and step counts."""
    for master_weights, per_parameter in ((True, (2, 4, 12)), (False, (2, 2, 4))):
        rank = alone(bfloat16(optimizer={"master_weights": master_weights}))
        rank.train(1)
        tensors = [parameter for unit in rank.built.units.values() for parameter in unit.parameters()]
        count = sum(parameter.numel() for parameter in tensors)
        held = rank.built.ledger.memory(watched=False)
        assert rank.built.update is not None
        counters = 4 * len(rank.built.update.optimizer.state)
        assert (held.parameters, held.gradients, held.optimizer - counters) == tuple(
            num_bytes * count for num_bytes in per_parameter
        )


def test_training_follows_float32() -> None:
    """A short one on real text; `scripts/bench precision` is the demo's whole training."""
    source = open_source(Data())
    tables: dict[str, Any] = {
        "batch": {"global_batch_size": 8, "microbatch_size": 4, "sequence_length": 32},
        "workload": {"steps": STEPS, "seed": 0},
        "optimizer": {"learning_rate": "0.01", "warmup_steps": 5},
    }
    model = {"vocab_size": 256, "hidden_size": 48, "num_layers": 1, "ffn_size": 96}
    losses = [
        sum(alone(deployment(model={**model, "dtype": dtype}, **tables), source).train(STEPS)[-5:]) / 5
        for dtype in ("float32", "bfloat16")
    ]
    assert losses[0] < 4, "it learns"
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def masters_by_mesh(rank: int) -> None:
    """Pipelines and replicas compute what one rank computes, so masters differ by the order of float32 sums only."""
    meshes: tuple[tuple[dict[str, int], str], ...] = (
        ({"pp_degree": 2, "dp_degree": 2, "shard_optimizer": True}, "zb_h1"),
        ({"tp_degree": 2, "pp_degree": 2}, "1f1b"),
    )
    for parallel, schedule in meshes:
        one, here = alone(bfloat16()), together(bfloat16(parallel=parallel, pipeline={"schedule": schedule}))
        losses, found = one.train(1), here.train(1)
        if "tp_degree" not in parallel:
            assert found == pytest.approx(losses, rel=1e-6)
            expected = masters_of(one)
            for name, (start, master) in masters_of(here).items():
                whole = expected[name].values[start : start + len(master)]
                torch.testing.assert_close(master, whole, rtol=1e-6, atol=1e-7, msg=name)
        assert here.train(3, first=1) == pytest.approx(one.train(3, first=1), rel=0.01)


class Run(NamedTuple):
    """Elements of a flattened parameter from `start` on."""

    start: int
    values: Tensor


def masters_of(rank: Rank) -> dict[str, Run]:
    assert rank.built.update is not None
    optimizer = rank.built.update.optimizer
    return {
        name: Run(moment.start, moment.values)
        for name, parameter, _ in iter_parameters(rank.built.units)
        for moment in optimizer.moments_of(parameter)
        if moment.name == MASTER
    }


@pytest.mark.ranks
def test_masters_are_the_same_on_every_mesh() -> None:
    run_ranks(4, masters_by_mesh)


@pytest.mark.parametrize("name", ["float16", "fp16", "half"])
def test_float16_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(DeploymentError, match=r"model.dtype.*float16.*loss is scaled.*write 'bfloat16'"):
        deployment(model={"dtype": name})


def test_the_fingerprint_is_as_before_there_was_such_a_key() -> None:
    default, on, off = (bfloat16(optimizer=table).fingerprint for table in ({}, {"master_weights": True}, OFF))
    assert default == on != off
