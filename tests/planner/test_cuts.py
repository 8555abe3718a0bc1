from __future__ import annotations

from collections.abc import Sequence

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.costs import unit_costs
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


@pytest.mark.parametrize("cuts", ["even", "balanced"])
def test_more_stages_than_units(cuts: str) -> None:
    with pytest.raises(PlanError, match="7 pipeline stages need at least as many units, but the model has 6"):
        cut(NAMES, cuts, 7)
