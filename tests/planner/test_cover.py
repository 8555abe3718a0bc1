from __future__ import annotations

import pytest

from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.cover import parts_of, stage_cover, tp_findings
from hybrid_runtime.shapes import PRESETS

NAMES = ("embedding", "0.attn", "0.mlp", "1.attn", "1.mlp", "head")


PARTS = {"0.attn": 4, "0.mlp": 48, "1.attn": 4, "1.mlp": 48}


def read(drawing: str) -> list[list[str]]:
    return [stage.split() for stage in drawing.split("|")]


def cover(drawing: str, num_stages: int | None = None) -> list[str]:
    return list(stage_cover(read(drawing), NAMES, num_stages, parts=PARTS))


def test_a_right_cover() -> None:
    assert cover("embedding 0.attn | 0.mlp 1.attn 1.mlp head", 2) == []
    assert cover("embedding 0.attn[0:1] | 0.attn[1:4] 0.mlp[0:8] | 0.mlp[8:9] | 0.mlp[9:48] 1.attn 1.mlp head", 4) == []


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ("0.mlp[0:8] | 0.mlp[9:48]", "parts 8 to 9 of unit '0.mlp' are on no stage"),
        ("0.mlp[0:8] | 1.attn", "parts 8 to 48 of unit '0.mlp' are on no stage"),
        ("0.mlp[0:8] 0.mlp[4:48] |",
         "parts 4 to 8 of unit '0.mlp' are held twice (stage 0 and 0); each belongs to one stage"),
        ("0.mlp[0:8] | 0.mlp",
         "parts 0 to 8 of unit '0.mlp' are held twice (stage 0 and 1); each belongs to one stage"),
        ("0.mlp[8:48] | 0.mlp[0:8]", "unit '0.mlp[0:8]' comes after '0.mlp[8:48]', but the model runs it before"),
        ("0.mlp[0:8] | 0.mlp[8:49]",
         "'0.mlp[8:49]' is no piece of a unit of 48 parts; start below its end, and end at 48 or below"),
        ("0.mlp[0:8] | 0.mlp[8:8]",
         "'0.mlp[8:8]' is no piece of a unit of 48 parts; start below its end, and end at 48 or below"),
        ("0.mlp[0:8] | 0.mlp[eight:]",
         "'0.mlp[eight:]' is no piece of unit '0.mlp'; write '0.mlp[first:end]' with whole numbers"),
        ("0.mlp[0:8] | 0.mpl[8:48]", "the model has no unit '0.mpl'; did you mean '0.mlp'?"),
    ],
)  # fmt: skip
def test_one_finding_about_pieces(pieces: str, expected: str) -> None:
    rest = "1.mlp head" if "1.attn" in pieces else "1.attn 1.mlp head"
    assert expected in cover(f"embedding 0.attn {pieces} {rest}", 2)


@pytest.mark.parametrize("unit", ["embedding", "head"])
def test_the_ends_of_the_model_cannot_be_cut(unit: str) -> None:
    drawing = "embedding 0.attn 0.mlp | 1.attn 1.mlp head".replace(unit, f"{unit}[0:5]")
    assert cover(drawing) == [
        f"unit {unit!r} cannot be cut, but '{unit}[0:5]' is a piece of it; cut before or after the unit"
    ]
    costs = unit_costs(PRESETS["tiny"], microbatch_size=1, sequence_length=8, workload="train")
    assert {name.rpartition(".")[2]: parts for name, parts in parts_of(costs).items()} == {"attn": 6, "mlp": 256}


@pytest.mark.parametrize(
    ("drawing", "tp_degree", "expected"),
    [
        ("0.mlp[0:8] | 0.mlp[8:48]", 4, ()),
        ("0.mlp[0:9] | 0.mlp[9:48]", 4, ("the cut at 9 of unit '0.mlp' is no multiple of tp 4; cut at 8 or 12",)),
        ("0.mlp[0:2] | 0.mlp[2:48]", 4, ("the cut at 2 of unit '0.mlp' is no multiple of tp 4; cut at 4",)),
        ("0.attn[0:1] | 0.attn[1:4]", 4,
         ("the cut at 1 of unit '0.attn' is no multiple of tp 4; cut before or after the unit",)),
        ("0.attn[0:1] | 0.attn[1:2] | 0.attn[2:4]", 8,
         ("unit '0.attn' has 4 parts, which tp 8 does not divide, so it cannot be cut; cut before or after it, "
          "or change tp_degree",)),
    ],
)  # fmt: skip
def test_cuts_that_tensor_parallelism_forbids(drawing: str, tp_degree: int, expected: tuple[str, ...]) -> None:
    assert tp_findings(read(drawing), PARTS, tp_degree) == expected


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        ("embedding 0.attn 0.mlp | 1.mlp head", "1 unit is on no stage: 1.attn"),
        ("embedding | head", "4 units are on no stage: 0.attn, 0.mlp, 1.attn, 1.mlp"),
        (
            "embedding 0.attn 0.mlp | 0.mlp 1.attn 1.mlp head",
            "unit '0.mlp' is held 2 times (stage 0 and 1); each belongs to one stage",
        ),
        (
            "1.attn 1.mlp head | embedding 0.attn 0.mlp",
            "unit 'embedding' comes after 'head', but the model runs it before",
        ),
        (
            "| embedding 0.attn 0.mlp 1.attn 1.mlp head",
            "stage 0 is empty; if its range is 'first..last', the last unit must not come before the first",
        ),
        ("embeding 0.attn 0.mlp | 1.attn 1.mlp head", "the model has no unit 'embeding'; did you mean 'embedding'?"),
        ("zzz | 1.attn", "the model has no unit 'zzz'; its units run from 'embedding' to 'head'"),
    ],
)
def test_one_finding(drawing: str, expected: str) -> None:
    assert cover(drawing, 2) == [expected]


def test_wrong_number_of_stages() -> None:
    drawing = "embedding 0.attn 0.mlp | 1.attn 1.mlp head"
    assert cover(drawing) == []
    assert cover(drawing, 3) == ["2 stages are given, but pp_degree asks for 3"]


def test_long_lists_are_cut_short() -> None:
    names = [f"{layer}.mlp" for layer in range(9)]
    assert stage_cover([["8.mlp"]], names) == (
        "8 units are on no stage: 0.mlp, 1.mlp, 2.mlp, 3.mlp, 4.mlp, 5.mlp, ...",
    )
