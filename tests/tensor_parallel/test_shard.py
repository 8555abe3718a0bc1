"""Layouts drawn: a letter a row of the whole parameter, '.' padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.errors import PlanError
from hybrid_runtime.tensor_parallel.shard import (
    Segment,
    ShardSpec,
    counted_ranges,
    gather_full,
    iter_parameters,
    local_of,
    split_evenly,
    square_sum,
    sum_partial_gradients,
)


def layout(text: str, sizes: list[int], ranks: int, replicas: list[int] | None = None) -> list[str]:
    """What every rank holds of `text`, one letter a row, and in brackets what does not count."""
    full = torch.tensor([ord(letter) for letter in text])
    lines = []
    for rank in range(ranks):
        segments = split_evenly("size", sizes, Axis(ranks, rank), replicas, padded=True)
        local = local_of(full, ShardSpec(global_shape=(len(text),), dim=0, segments=segments))
        pieces = local.split_with_sizes([segment.length for segment in segments])
        words = ["".join(chr(row) if row else "." for row in piece.tolist()) for piece in pieces]
        lines.append(" ".join(w if s.counted else f"({w})" for w, s in zip(words, segments)))
    return lines


def test_layouts() -> None:
    assert layout("abcdef", [6], 3) == ["ab", "cd", "ef"]
    assert layout("abcdefgh", [4, 4], 2) == ["ab ef", "cd gh"]  # gate and up
    assert layout("abcde", [5], 4) == ["ab", "cd", "e.", ".."]  # a padded vocabulary
    assert layout("abcdefghkKvV", [8, 2, 2], 4, [1, 2, 2]) == [  # query heads; 2 key/value heads on 4 ranks
        "ab k v",
        "cd (k) (v)",
        "ef K V",
        "gh (K) (V)",
    ]


def test_columns_and_whole_parameters() -> None:
    full = torch.arange(12).view(3, 4)
    columns = ShardSpec(global_shape=(3, 4), dim=1, segments=split_evenly("size", [4], Axis(2, 1)))
    assert columns.local_shape == (3, 2)
    assert local_of(full, columns).tolist() == [[2, 3], [6, 7], [10, 11]]
    whole = ShardSpec(global_shape=(3, 4))
    assert local_of(full, whole).tolist() == full.tolist()
    assert gather_full(full, whole, Axis()).tolist() == full.tolist()
    assert gather_full(full, ShardSpec(global_shape=(3, 4), dim=0, segments=(Segment(0, 3),)), Axis()).equal(full)


def test_sizes_that_do_not_split_are_refused() -> None:
    with pytest.raises(PlanError, match=r"output size 10 is not divisible by 4 ranks \(tensor-parallel degree 4\)"):
        split_evenly("output size", [8, 10], Axis(4, 0))
    with pytest.raises(PlanError, match=r"size 5 is not divisible by 2 ranks \(tensor-parallel degree 4\)"):
        split_evenly("size", [5], Axis(4, 0), [2])


def test_parameters_are_walked_once_with_their_layouts() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 3))
            self.shards = {"weight": ShardSpec(global_shape=(4, 3), dim=0, segments=(Segment(0, 2),))}

    layer, other = Layer(), Layer()
    one = nn.Sequential(layer, nn.Linear(3, 2))
    other.weight = layer.weight
    names = [(name, spec.global_shape) for name, _, spec in iter_parameters({"a": one, "b": other})]
    assert names == [("a.0.weight", (4, 3)), ("a.1.weight", (2, 3)), ("a.1.bias", (2,))]
    assert [name for name, _, _ in iter_parameters(one)] == ["0.weight", "1.weight", "1.bias"]


def test_whole_parameters_count_on_rank_0_and_copies_on_their_holder() -> None:
    whole = ShardSpec(global_shape=(4,))
    copies = ShardSpec(global_shape=(6, 3), dim=0, segments=(Segment(0, 2), Segment(4, 2, 2, counted=False)))
    columns = replace(copies, global_shape=(3, 6), dim=1)
    assert [counted_ranges(whole, Axis(2, rank)) for rank in (0, 1)] == [[(0, 4)], []]
    assert counted_ranges(copies, Axis(2, 1)) == [(0, 6)]
    assert counted_ranges(columns, Axis(2, 1)) == [(0, 2), (4, 6), (8, 10)]
    counted = replace(columns, segments=(Segment(0, 2), Segment(4, 2, 2)))
    assert counted_ranges(counted, Axis(2, 1)) == [(0, 12)]


def test_squares_are_added_in_a_wide_type() -> None:
    parts = [torch.full((4096,), 3.0, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)]
    assert square_sum(parts).dtype == torch.float32
    assert square_sum(parts).item() == 9 * 4096 + 1
    assert square_sum([]).item() == 0
    sum_partial_gradients(nn.Linear(2, 2), Axis())  # nothing to do on one rank
