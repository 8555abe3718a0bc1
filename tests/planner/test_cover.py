from __future__ import annotations

import pytest

from hybrid_runtime.planner.cover import stage_cover

NAMES = ("embedding", "0.attn", "0.mlp", "1.attn", "1.mlp", "head")


def cover(drawing: str, num_stages: int | None = None) -> list[str]:
    return list(stage_cover([stage.split() for stage in drawing.split("|")], NAMES, num_stages))


def test_a_right_cover() -> None:
    assert cover("embedding 0.attn | 0.mlp 1.attn 1.mlp head", 2) == []


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
