from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import Piece, read_piece
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.cover import parts_of, stage_cover
from hybrid_runtime.planner.cuts import cut_units
from hybrid_runtime.shapes import PRESETS

NAMES = ("embedding", "0.attn", "0.mlp", "1.attn", "1.mlp", "head")


def not_counted(names: Sequence[str]) -> list[UnitCost]:
    return [
        UnitCost(name=name, forward_flops=0, input_grad_flops=0, weight_grad_flops=0, parameters=0) for name in names
    ]


def cut(names: Sequence[str], cuts: str | list[str], num_stages: int) -> str:
    return " | ".join(" ".join(stage) for stage in cut_units(cuts, not_counted(names), num_stages))


@pytest.mark.parametrize(
    ("num_stages", "drawing"),
    [
        (1, "embedding 0.attn 0.mlp 1.attn 1.mlp head"),
        (2, "embedding 0.attn 0.mlp | 1.attn 1.mlp head"),
        (3, "embedding 0.attn 0.mlp | 1.attn 1.mlp | head"),
        (4, "embedding | 0.attn 0.mlp | 1.attn 1.mlp | head"),
        (5, "embedding | 0.attn | 0.mlp 1.attn | 1.mlp | head"),  # a stage without a layer would be empty: by units
        (6, "embedding | 0.attn | 0.mlp | 1.attn | 1.mlp | head"),
    ],
)
def test_even(num_stages: int, drawing: str) -> None:
    assert cut(NAMES, "even", num_stages) == drawing
    assert cut(NAMES, "balanced", num_stages) == drawing  # no FLOPs are known


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "layers"),
    [(32, 3, [11, 11, 10]), (28, 3, [9, 10, 9]), (28, 8, [3, 3, 4, 4, 4, 4, 3, 3]), (5, 4, [1, 2, 1, 1])],
)
def test_the_remainder_goes_to_the_middle(num_layers: int, num_stages: int, layers: list[int]) -> None:
    names = ["embedding", *[f"{layer}.block" for layer in range(num_layers)], "head"]
    stages = cut_units("even", not_counted(names), num_stages)
    assert [sum(name.endswith(".block") for name in stage) for stage in stages] == layers
    assert (stages[0][0], stages[-1][-1]) == ("embedding", "head")


def test_even_without_layers_counts_units() -> None:
    assert cut("abcde", "even", 3) == "a b | c d | e"
    assert cut("abcd", "even", 3) == "a | b c | d"


def test_units_between_layers_stay_with_the_layer_before() -> None:
    names = ["tokens", "positions", "0.attn", "0.mlp", "bridge", "1.attn", "norm", "head"]
    assert cut(names, "even", 2) == "tokens positions 0.attn 0.mlp bridge | 1.attn norm head"


# TFLOP per microbatch of the heaviest stage over the mean, in percent above it, for sequences of 4096 tokens
@pytest.mark.parametrize(
    ("preset", "num_stages", "balanced_percent"),
    [
        ("llama-3-8b", 3, 3.0),
        ("llama-3-8b", 4, 4.7),
        ("llama-3-8b", 8, 10.9),
        ("qwen2.5-7b", 3, 1.2),
        ("qwen2.5-7b", 4, 5.9),
        ("qwen2.5-7b", 8, 6.0),
    ],
)
def test_what_balanced_cuts_reach(preset: str, num_stages: int, balanced_percent: float) -> None:
    costs = unit_costs(PRESETS[preset], microbatch_size=1, sequence_length=4096, workload="train")
    flops = {cost.name: cost.flops for cost in costs}
    stages = cut_units("balanced", costs, num_stages)
    assert [name for stage in stages for name in stage] == list(flops)
    loads = [sum(flops[name] for name in stage) for stage in stages]
    assert round((max(loads) * num_stages / sum(loads) - 1) * 100, 1) == balanced_percent


def test_absolute_flops_of_even_stages() -> None:
    costs = unit_costs(PRESETS["llama-3-8b"], microbatch_size=1, sequence_length=4096, workload="train")
    flops = {cost.name: cost.flops for cost in costs}
    stages = cut_units("even", costs, 4)
    assert [round(sum(flops[name] for name in stage) / 1e12, 1) for stage in stages] == [46.7, 46.7, 46.7, 59.6]


@pytest.mark.parametrize(
    ("cuts", "drawing"),
    [
        (["embedding..0.attn", "0.mlp..head"], "embedding 0.attn | 0.mlp 1.attn 1.mlp head"),
        (["embedding", " 0.attn .. 1.mlp ", "head"], "embedding | 0.attn 0.mlp 1.attn 1.mlp | head"),
        (["embeding..1.mlp", "head"], "embeding 1.mlp | head"),  # unknown names are kept for `stage_cover`
        (["1.mlp..0.attn", "head"], " | head"),
    ],
)
def test_explicit_ranges_are_only_read(cuts: list[str], drawing: str) -> None:
    assert cut(NAMES, cuts, 2) == drawing


PARTS = {"embedding": 50, "0.attn": 4, "0.mlp": 48, "1.attn": 4, "1.mlp": 48, "head": 1}
SLICEABLE = [
    cost.model_copy(update={"parts": parts}) for cost, parts in zip(not_counted(NAMES), PARTS.values(), strict=True)
]


@pytest.mark.parametrize(
    ("cuts", "drawing"),
    [
        (["embedding..0.mlp[:16]", "0.mlp[16:]..head"],
         "embedding 0.attn 0.mlp[0:16] | 0.mlp[16:48] 1.attn 1.mlp head"),
        (["embedding..0.attn", "0.mlp[ : 8 ]", "0.mlp[8:24]", "0.mlp[24:48] .. head"],
         "embedding 0.attn | 0.mlp[0:8] | 0.mlp[8:24] | 0.mlp[24:48] 1.attn 1.mlp head"),
        (["embedding..0.attn[:3]", "0.attn[3:]..1.mlp[:1]", "1.mlp[1:]..head"],
         "embedding 0.attn[0:3] | 0.attn[3:4] 0.mlp 1.attn 1.mlp[0:1] | 1.mlp[1:48] head"),
        (["embedding..0.mlp[:]", "1.attn[0:4]..head"], "embedding 0.attn 0.mlp | 1.attn 1.mlp head"),
        (["embedding..0.attn", "0.mlp[:8]..0.mlp[8:]", "1.attn..head"],
         "embedding 0.attn | 0.mlp | 1.attn 1.mlp head"),  # pieces that meet on one stage are one
        (["0.mlp[:8]..0.mlp[9:]"], "0.mlp[0:8] 0.mlp[9:48]"),
        (["embedding..0.mpl[:8]", "0.mpl[8:]..head"], "embedding 0.mpl[:8] | 0.mpl[8:] head"),
        (["1.mlp[:8]..0.attn[2:]"], ""),
    ],
)  # fmt: skip
def test_an_end_of_a_range_may_be_a_piece(cuts: list[str], drawing: str) -> None:
    assert " | ".join(" ".join(stage) for stage in cut_units(cuts, SLICEABLE, len(cuts))) == drawing


@st.composite
def edges(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Cuts as (unit, parts of it before the cut), in order and all different; 0 parts is a cut before the unit."""
    places = [(unit, 0) for unit in range(1, len(NAMES))]
    places += [(unit, part) for unit in range(1, 5) for part in range(1, PARTS[NAMES[unit]])]
    return sorted(draw(st.sets(st.sampled_from(places), max_size=12)))


@given(edges())
def test_cuts_never_lose_a_unit_a_part_or_the_order(cuts: list[tuple[int, int]]) -> None:
    bounds = [(0, 0), *cuts, (len(NAMES), 0)]
    stages = cut_units([_range(begin, end) for begin, end in pairwise(bounds)], SLICEABLE, len(cuts) + 1)
    assert stage_cover(stages, NAMES, len(cuts) + 1, parts=parts_of(SLICEABLE)) == ()
    held = [read_piece(name) or Piece(name, 0, PARTS[name]) for stage in stages for name in stage]
    parts = [(NAMES.index(piece.unit), part) for piece in held for part in range(piece.start, piece.stop)]
    assert parts == [(index, part) for index, name in enumerate(NAMES) for part in range(PARTS[name])]


def _range(begin: tuple[int, int], end: tuple[int, int]) -> str:
    """The stage from one cut to the next, written as a person would."""
    first = NAMES[begin[0]] + (f"[{begin[1]}:]" if begin[1] else "")
    last = NAMES[end[0]] + f"[:{end[1]}]" if end[1] else NAMES[end[0] - 1]
    if begin[1] and (end == (begin[0] + 1, 0)):
        return first
    if begin[0] == end[0]:
        return f"{NAMES[begin[0]]}[{begin[1]}:{end[1]}]"
    return f"{first}..{last}"


@pytest.mark.parametrize("cuts", ["even", "balanced"])
def test_more_stages_than_units(cuts: str) -> None:
    with pytest.raises(PlanError, match="7 pipeline stages need at least as many units, but the model has 6"):
        cut(NAMES, cuts, 7)
