"""The split of a backward pass into input and weight gradient, counted on units whose FLOPs are known by hand."""

from __future__ import annotations

import pytest
from torch import nn

from hybrid_runtime.errors import UsageError
from hybrid_runtime.models.measure import measured_costs
from hybrid_runtime.models.unit import Carry, Microbatch, UnitSpec
from hybrid_runtime.pieces import Piece, Slice
from hybrid_runtime.planner.costs import piece_cost


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


class Sliced(nn.Module):
    """A sum over `width` hidden units, whole or in pieces: a norm in the first, a bias after the sum in the last."""

    def __init__(self, width: int, piece: Slice | None) -> None:
        super().__init__()
        held = width if piece is None else piece.stop - piece.start
        self.norm = nn.LayerNorm(4) if piece is None or piece.is_first else None
        self.up = nn.Linear(4, held, bias=False)
        self.down = nn.Linear(held, 4, bias=piece is None or piece.is_last)

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        assert self.norm is not None, "only the whole unit is run"
        return (self.down(self.up(self.norm(carry[0]))), carry[1])


SOURCE = UnitSpec("source", lambda context: Source())


def test_parts_of_a_unit_and_what_belongs_to_none() -> None:
    sliced = UnitSpec("sliced", lambda context: Sliced(6, context.piece), parts=6)
    _, cost = measured_costs([SOURCE, sliced], microbatch_size=2, sequence_length=6)
    assert (cost.parts, cost.parameters, cost.fixed_parameters) == (6, 8 + 6 * 8 + 4, 8)
    pieces = [piece_cost(cost, Piece("sliced", *edges)) for edges in ((0, 1), (1, 6))]
    assert sum(piece.flops for piece in pieces) == cost.flops
    assert sum(piece.parameters for piece in pieces) == cost.parameters


def test_a_unit_of_two_parts() -> None:
    sliced = UnitSpec("sliced", lambda context: Sliced(2, context.piece), parts=2)
    _, cost = measured_costs([SOURCE, sliced], microbatch_size=2, sequence_length=6)
    assert cost.fixed_parameters == 8 - 4, "the bias after the sum cannot be told from a part"


def test_parts_that_are_not_built_are_refused() -> None:
    whole = UnitSpec("whole", lambda context: Sliced(6, None), parts=6)
    with pytest.raises(UsageError, match="unit 'whole' has 60 parameters, its first part of 6 has 60"):
        measured_costs([SOURCE, whole], microbatch_size=2, sequence_length=6)


def test_a_tied_weight_forbids_cuts() -> None:
    ties = {"down.bias": ("source", "second.bias")}
    sliced = UnitSpec("sliced", lambda context: Sliced(6, context.piece), tied=ties, parts=6)
    assert measured_costs([SOURCE, sliced], microbatch_size=2, sequence_length=6)[1].parts == 1


def test_a_forward_workload_has_no_backward() -> None:
    (cost,) = measured_costs(
        [UnitSpec("source", lambda context: Source())], microbatch_size=2, sequence_length=6, workload="forward"
    )
    assert cost.forward_flops > 0
    assert (cost.input_grad_flops, cost.weight_grad_flops) == (0, 0)
