"""A user's own units: resolved, built, trained, measured; and every way of getting them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hybrid_runtime.deployment import parse_deployment
from hybrid_runtime.deployment_model import Model
from hybrid_runtime.errors import UsageError
from hybrid_runtime.models.build import build_units, model_costs, model_units
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch, UnitSpec
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.shapes import PRESETS
from hybrid_runtime.tensor_parallel.shard import ShardSpec, iter_parameters

USER_MODULE = """
import torch
from torch import nn
from hybrid_runtime.models.unit import UnitSpec

class Embedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(11, width)
    def forward(self, carry, microbatch):
        return (self.table(microbatch.tokens),)

class Block(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.scale = scale
    def forward(self, carry, microbatch):
        return (carry[0] + self.scale * self.linear(carry[0]).relu(),)

class Head(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.out = nn.Linear(width, 11, bias=False)
    def forward(self, carry, microbatch):
        logits = self.out(carry[0])
        if microbatch.targets is None:
            return (logits,)
        return (nn.functional.cross_entropy(logits.flatten(0, 1), microbatch.targets.flatten(), reduction="sum"),)

def units(*, width=8, scale=1.0):
    assert isinstance(scale, float)
    return [UnitSpec("embedding", lambda context: Embedding(width)),
            UnitSpec("0.block", lambda context: Block(width, scale)),
            UnitSpec("head", lambda context: Head(width), tied={"out.weight": ("embedding", "table.weight")})]

def boom():
    raise ValueError("no such size")

def number():
    return 3

def bracket():
    return [UnitSpec("0.mlp[0:3]", lambda context: Block(2, 1.0))]

def mixed():
    return [*units(), "head"]

def twice():
    return [*units(), *units()[:1]]
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_test_model.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("/nonexistent")  # restores sys.path, into which the current folder is put
    return "my_test_model"


def test_a_users_plain_modules_train(user_module: str) -> None:
    deployment = parse_deployment(
        {
            "name": "mine",
            "model": {"units": f"{user_module}:units", "options": {"width": 6, "scale": "0.5"} | {"scale": 0.5}},
            "batch": {"global_batch_size": 4, "microbatch_size": 2, "sequence_length": 5},
        },
        source="test",
    )
    specs = model_units(deployment.model, deployment.shape)
    units = build_units(specs, BuildContext())
    assert [name for name, _, _ in iter_parameters(units)] == [
        "embedding.table.weight",
        "0.block.linear.weight",
        "0.block.linear.bias",
    ]
    assert next(iter_parameters(units))[2] == ShardSpec(global_shape=(11, 6))
    tokens = torch.arange(10).view(2, 5)
    carry: Carry = ()
    for unit in units.values():
        carry = unit(carry, Microbatch(tokens, tokens))
    torch.autograd.backward(carry[0])
    assert all(parameter.grad is not None for _, parameter, _ in iter_parameters(units))

    embedding, block, head = model_costs(deployment, specs)
    product, logits = 2 * 10 * 6 * 6, 2 * 10 * 6 * 11
    assert (embedding.forward_flops, embedding.input_grad_flops, embedding.weight_grad_flops) == (0, 0, 0)
    assert (block.forward_flops, block.input_grad_flops, block.weight_grad_flops) == (product,) * 3
    assert (head.forward_flops, head.input_grad_flops, head.weight_grad_flops) == (logits,) * 3
    assert (embedding.parameters, block.parameters, head.parameters) == (66, 42, 0)  # tied: counted in the embedding


def test_wrong_user_functions_are_explained(user_module: str) -> None:
    for units, message in (
        ("no_such_module_anywhere:units", "importing 'no_such_module_anywhere' failed"),
        (f"{user_module}:nothing", "has no function 'nothing'"),
        (f"{user_module}:boom", "raised ValueError: no such size"),
        (f"{user_module}:number", "returned a int; it must return a list of UnitSpec"),
        (f"{user_module}:mixed", "returned a list with a str"),
        (f"{user_module}:twice", "'embedding' appears twice"),
        (f"{user_module}:bracket", r"named '0\.mlp\[0:3\]', but cuts are written with names"),
    ):
        with pytest.raises(UsageError, match=message):
            model_units(Model(units=units), None)
    with pytest.raises(UsageError, match="raised TypeError"):
        model_units(Model(units=f"{user_module}:units", options={"depth": 3}), None)
    with pytest.raises(UsageError, match=r"no \[model\] table"):
        model_units(None, None)


def test_wrong_units_are_explained() -> None:
    with pytest.raises(UsageError, match="unit 'x' was built as a int"):
        build_units([UnitSpec("x", lambda context: 3)], BuildContext())  # type: ignore[arg-type, return-value]
    tied = [UnitSpec("a", lambda c: nn.Linear(2, 2)), UnitSpec("b", lambda c: nn.Linear(2, 2), {"w": ("a", "weight")})]
    with pytest.raises(UsageError, match="unit 'b' has no parameter 'w' to tie"):
        build_units(tied, BuildContext())

    class Peeks(nn.Module):
        def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
            first: Tensor = microbatch.tokens.float()
            return (first * first.sum().item(),)

    deployment = parse_deployment(
        {
            "name": "peeks",
            "model": {"units": "a:b"},
            "batch": {"global_batch_size": 1, "microbatch_size": 1, "sequence_length": 4},
        },
        source="test",
    )
    with pytest.raises(UsageError, match="unit 'peeks' cannot be measured without data"):
        model_costs(deployment, [UnitSpec("peeks", lambda context: Peeks())])


def test_presets_cost_by_formula() -> None:
    deployment = parse_deployment(
        {
            "name": "tiny",
            "model": {"preset": "tiny"},
            "workload": {"kind": "forward"},
            "batch": {"global_batch_size": 4, "microbatch_size": 2, "sequence_length": 16},
        },
        source="test",
    )
    costs = model_costs(deployment, model_units(deployment.model, deployment.shape))
    assert costs == unit_costs(PRESETS["tiny"], microbatch_size=2, sequence_length=16, workload="forward")


def test_plain_modules_start_equal_whatever_else_a_rank_builds() -> None:
    specs = [UnitSpec(name, lambda context: nn.Linear(3, 3)) for name in ("a", "b", "c")]
    whole = build_units(specs, BuildContext(seed=5))
    torch.rand(7)
    alone = build_units(specs[1:2], BuildContext(seed=5))
    assert torch.equal(whole["b"].weight, alone["b"].weight)  # type: ignore[arg-type]
    assert not torch.equal(whole["a"].weight, whole["b"].weight)  # type: ignore[arg-type]
    half = build_units(specs, BuildContext(dtype=torch.bfloat16))
    assert {p.dtype for p in half["c"].parameters()} == {torch.bfloat16}


def test_a_slice_of_a_weight_gets_memory_of_its_own() -> None:
    """torch's fused AdamW updates a strided parameter wrongly, without a word."""

    def build(context: BuildContext) -> nn.Module:
        linear = nn.Linear(4, 6)
        linear.weight = nn.Parameter(linear.weight[:, 1:3])
        return linear

    (unit,) = build_units([UnitSpec("one", build)], BuildContext()).values()
    weight = dict(unit.named_parameters())["weight"]
    assert weight.is_contiguous()
    assert weight.untyped_storage().nbytes() == weight.nbytes == 6 * 2 * 4
