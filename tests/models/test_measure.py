"""The split of a backward pass into input and weight gradient, counted on units whose FLOPs are known by hand."""

from __future__ import annotations

from torch import nn

from hybrid_runtime.models.measure import measured_costs
from hybrid_runtime.models.unit import Carry, Microbatch, UnitSpec


class Source(nn.Module):
    """A first unit with two matrices: nobody needs its input gradient, but its weights need one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)
        self.first, self.second = nn.Linear(3, 5, bias=False), nn.Linear(5, 4, bias=False)

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        return (self.second(self.first(self.table(microbatch.tokens))), microbatch.tokens)


class Scores(nn.Module):
    """Products without weights (attention-like): all of their backward is input gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        x, tokens = carry
        assert tokens.dtype == microbatch.tokens.dtype
        y = self.linear(x)
        return ((y @ y.transpose(1, 2)).sum(),)


def test_input_and_weight_gradient_are_separated_exactly() -> None:
    specs = [UnitSpec("source", lambda context: Source()), UnitSpec("scores", lambda context: Scores())]
    source, scores = measured_costs(specs, microbatch_size=2, sequence_length=6)
    n = 12
    first, second = 2 * n * 3 * 5, 2 * n * 5 * 4
    assert source.forward_flops == first + second
    assert source.input_grad_flops == 0
    assert source.weight_grad_flops == first + 2 * second + first, "both weights, and both inputs inside"
    linear, product = 2 * n * 4 * 4, 2 * 2 * 6 * 6 * 4
    assert scores.forward_flops == linear + product
    assert scores.input_grad_flops == linear + 2 * product
    assert scores.weight_grad_flops == linear
    assert (source.parameters, scores.parameters) == (21 + 15 + 20, 20)


def test_a_forward_workload_has_no_backward() -> None:
    (cost,) = measured_costs(
        [UnitSpec("source", lambda context: Source())], microbatch_size=2, sequence_length=6, workload="forward"
    )
    assert cost.forward_flops > 0
    assert (cost.input_grad_flops, cost.weight_grad_flops) == (0, 0)
