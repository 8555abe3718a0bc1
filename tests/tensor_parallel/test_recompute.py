"""What is forgotten after F comes back bit for bit, costs what it should, and is gone after the backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import RunError
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.tensor_parallel.gradients import set_accumulate_in_place
from hybrid_runtime.tensor_parallel.random_state import ParallelDropout, RandomStates
from hybrid_runtime.tensor_parallel.recompute import Recompute, forget
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue
from tests.checkpoint.dropping_model import DroppingBlock
from tests.pipeline.examples import WIDTH, First, Last, Middle

SHAPE = LlamaShape(
    vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=48, qk_norm=True
)
B, S = 2, 8
ORDER = "F0 F1 I0 F2 I1 W0 B2 W1 F3 B3"
KINDS: tuple[RecomputeKind, ...] = ("none", "selective", "full")


def microbatch(i: int) -> Microbatch:
    ids = torch.randint(0, 50, (B, S + 1), generator=torch.Generator().manual_seed(i))
    return Microbatch(ids[:, :-1], ids[:, 1:])


def trained(
    units: dict[str, nn.Module],
    recompute: Recompute,
    order: str = ORDER,
    microbatches: Callable[[int], Microbatch] = microbatch,
) -> tuple[dict[str, Tensor], dict[str, int], ByteLedger]:
    """Gradients, bytes of activations after every action, and the ledger; all units on one stage."""
    for unit in units.values():
        set_accumulate_in_place(unit, True)
    ledger = ByteLedger([parameter for unit in units.values() for parameter in unit.parameters()])
    queue = WeightQueue(keep=ledger.keep)
    stage = Stage(0, list(units.items()), training=True)
    stage.use_queue(queue)
    stage.recompute(recompute, list(units)[1:-1])
    held = {}
    for action in order.split():
        kind, i = action[0], int(action[1:])
        with ledger.watching():
            match kind:
                case "F":
                    stage.forward(i, (), microbatches(i))
                case "W":
                    stage.weight_gradient(i)
                case _:
                    run = stage.backward if kind == "B" else stage.input_gradient
                    run(i, (torch.tensor(0.1),))
        held[action] = ledger.in_use.activations
    named = ((f"{name}.{own}", p) for name, unit in units.items() for own, p in unit.named_parameters())
    return {name: p.grad for name, p in named if p.grad is not None}, held, ledger


def llama(
    kind: RecomputeKind, order: str = ORDER, shape: LlamaShape = SHAPE
) -> tuple[dict[str, Tensor], dict[str, int], ByteLedger]:
    return trained(build_units(llama_units(shape), BuildContext(seed=1)), Recompute(kind), order)


def test_a_llama_in_any_order_of_actions() -> None:
    kept, _, _ = llama("none")
    for kind in KINDS[1:]:
        found, held, ledger = llama(kind)
        assert set(found) == set(kept)
        assert all(torch.equal(found[name], gradient) for name, gradient in kept.items()), kind
        assert held["B3"] == 0, "all is let go"
        assert ledger.in_use.activations == 0


def test_bytes_kept_are_those_of_the_inputs() -> None:
    """Of each unit: x, and with "selective" what its column made; what waits for W is the same for all."""
    bytes_of = {kind: llama(kind, "F0 I0 W0", replace(SHAPE, qk_norm=False))[1] for kind in KINDS}
    per_token, tokens = 4, B * S
    h, heads, q, f = 32, 4 * 8 + 2 * 2 * 8, 4 * 8, 48
    attn, mlp = {"selective": h + heads, "full": h}, {"selective": h + 2 * f, "full": h}
    kept_by_ends = bytes_of["none"]["F0"] - 2 * per_token * tokens * (2 * h + heads + q + 2 * h + 3 * f)
    for kind in KINDS[1:]:
        units = 2 * per_token * tokens * (attn[kind] + mlp[kind])
        assert bytes_of[kind]["F0"] < bytes_of["none"]["F0"]
        small = 4 * tokens * (2 + 2 + 4 + 6) * 2  # scales of norms, sums of softmax: what kept_by_ends has too much
        assert abs(bytes_of[kind]["F0"] - units - kept_by_ends) <= small
        assert bytes_of[kind]["I0"] == bytes_of["none"]["I0"]


def test_the_backward_holds_one_unit_at_a_time() -> None:
    peaks = {}
    for kind in KINDS:
        _, held, ledger = llama(kind, "F0 F1 F2 B2")
        peaks[kind] = ledger.peaks.activations - held["F2"]
    assert peaks["none"] == 0
    assert 0 < peaks["full"] < 4 * B * S * (4 * 32 + 3 * 48 + 64), "the inside of a unit, not of all four"


class Dropping(nn.Module):
    """Draws from both streams, and from torch's own beside them."""

    def __init__(self, states: RandomStates) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.own = ParallelDropout(0.3, states, sharded=True)

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        x, *rest = carry
        return (self.own(nn.functional.dropout(self.linear(x), 0.4)), *rest)


@pytest.mark.parametrize("middle", [Middle, Dropping])
def test_plain_modules_run_again_whole_and_in_the_same_random_states(middle: type[nn.Module]) -> None:
    """Carries with an integer tensor and one that is passed through untouched."""
    found = []
    for kind in ("none", "full"):
        torch.manual_seed(3)
        states = RandomStates(5, Axis())
        inner = Middle() if middle is Middle else Dropping(states)
        units = {"a": First(), "b": inner, "c": Last()}
        drawn_after = []

        def batch(i: int) -> Microbatch:
            tokens = torch.arange(8).view(2, 4) + i
            return Microbatch(tokens % 11)

        gradients, _, _ = trained(units, Recompute(kind, states), "F0 F1 B0 F2 B2 B1", batch)
        drawn_after = [torch.rand(1).item()]
        found.append((gradients, drawn_after))
    (kept, drawn), (again, drawn_again) = found
    assert drawn == drawn_again, "running again draws nothing from those who come after"
    assert all(torch.equal(again[name], gradient) for name, gradient in kept.items())


def test_a_unit_that_changes_its_buffers_is_refused() -> None:
    torch.manual_seed(3)
    units = {"a": nn.Identity(), "b": DroppingBlock(BuildContext()), "c": nn.Identity()}
    stage = Stage(0, list(units.items())[1:2], training=True)
    stage.recompute(Recompute("full"), ["b"])
    with pytest.raises(RunError, match=r"unit 'b' changes a buffer in its forward and would do so twice"):
        stage.forward(0, (torch.ones(1, 2, 16),), microbatch(0))


def test_an_input_that_was_written_to_is_noticed() -> None:
    x = torch.ones(3, requires_grad=True)
    kept = x * 2
    (y,), _ = forget(lambda x: (x.exp(),), (kept,))
    kept.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_results_nobody_uses_and_inputs_without_a_gradient() -> None:
    x, tokens = torch.ones(3, requires_grad=True), torch.arange(3)
    (y, _, same), _ = forget(lambda x, t: (x * t, x.exp(), t), (x, tokens))
    assert not same.requires_grad
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 2]
