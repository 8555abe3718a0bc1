from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from hybrid_runtime.checkpoint.boxes import Box, HeldBox, flat_boxes, held_boxes, rectangles, shared_out
from hybrid_runtime.errors import UsageError
from hybrid_runtime.tensor_parallel.shard import Segment, ShardSpec


class Sharded(nn.Module):
    """One weight with a layout of its own."""

    def __init__(self, spec: ShardSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(float(torch.Size(spec.local_shape).numel())).view(spec.local_shape))
        self.shards = {"weight": spec}


def rows(start: int, stop: int, of: int = 8, name: str = "a.weight") -> Box:
    return Box(name, (of, 2), (start, 0), (stop - start, 2))


def test_a_piece_of_a_unit_holds_boxes_of_the_units_tensor() -> None:
    spec = ShardSpec(global_shape=(16, 3), dim=0, segments=(Segment(2, 2), Segment(10, 2)))
    held = held_boxes({"3.mlp[2:4]": Sharded(spec)}, {})
    assert [(each.box.name, each.box.offsets, each.box.sizes) for each in held] == [
        ("3.mlp.weight", (2, 0), (2, 3)),
        ("3.mlp.weight", (10, 0), (2, 3)),
    ]
    assert torch.equal(held[1].view_of(held[1].tensor), torch.arange(6.0, 12).view(2, 3))


def test_padding_is_not_held_and_a_tied_weight_has_one_name() -> None:
    spec = ShardSpec(global_shape=(5, 3), dim=0, segments=(Segment(4, 2),))
    (held,) = held_boxes({"head": Sharded(spec)}, {"head.weight": "embedding.weight"})
    assert held.box == Box("embedding.weight", (5, 3), (4, 0), (1, 3))
    beyond = ShardSpec(global_shape=(5, 3), dim=0, segments=(Segment(6, 2),))
    assert held_boxes({"head": Sharded(beyond)}, {}) == []


def test_columns_lie_side_by_side() -> None:
    spec = ShardSpec(global_shape=(2, 8), dim=1, segments=(Segment(4, 2), Segment(0, 1)))
    first, second = held_boxes({"a": Sharded(spec)}, {})
    assert (first.box.offsets, second.box.offsets) == ((0, 4), (0, 0))
    assert second.view_of(second.tensor).tolist() == [[2.0], [5.0]]


def test_replicas_share_the_work() -> None:
    boxes = [rows(0, 4), rows(4, 8)]
    others = [rows(0, 4, name="b.weight"), rows(4, 8, name="b.weight")]
    written = shared_out([[*boxes, *others], [*boxes, *others]])
    assert sorted(map(len, written)) == [2, 2]
    assert written[0] | written[1] == {*boxes, *others}
    assert not written[0] & written[1]


def test_what_lies_inside_another_box_is_not_written() -> None:
    """Rows of a sharded embedding on one rank, all of them in the tied head on another."""
    assert shared_out([[rows(2, 4)], [rows(0, 8)]]) == [set(), {rows(0, 8)}]


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([[rows(0, 4)], [rows(6, 8)]], r"a\.weight of shape \[8, 2\]: the ranks hold 12 of its 16 elements"),
        ([[rows(0, 5)], [rows(4, 8)]], r"hold 18 of its 16"),
        ([[rows(0, 8)], [rows(8, 9, of=9)]], r"of shape \[8, 2\] and \[9, 2\]"),
    ],
)
def test_a_tensor_that_is_not_held_whole_is_refused(held: list[list[Box]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shared_out(held)


@pytest.mark.parametrize("shape", [(), (7,), (4, 3), (2, 3, 4), (3, 1, 2)])
def test_a_run_of_a_flattened_tensor_is_a_few_rectangles(shape: tuple[int, ...]) -> None:
    elements = torch.arange(torch.Size(shape).numel())
    for start, stop in itertools.combinations_with_replacement(range(len(elements) + 1), 2):
        found = list(rectangles(shape, start, stop))
        held = torch.zeros(shape, dtype=torch.int64)
        for offsets, sizes in found:
            held[tuple(slice(first, first + size) for first, size in zip(offsets, sizes, strict=True))] += 1
        assert held.view(-1).tolist() == [int(start <= element < stop) for element in elements]
        assert len(found) <= max(1, 2 * len(shape) - 1)


@pytest.mark.parametrize(("dim", "first", "size"), [(None, 0, 0), (0, 1, 2), (1, 2, 1)])
def test_runs_of_what_adam_remembers_are_boxes_of_the_whole_tensor(dim: int | None, first: int, size: int) -> None:
    """A rank's (4, 3) of a (9, 8), of which a box may be a part: rows or columns, elsewhere in the whole tensor."""
    own = torch.arange(12.0).view(4, 3)
    sizes = (4, 3) if dim is None else tuple(size if here == dim else length for here, length in enumerate((4, 3)))
    held = HeldBox(Box("a", (9, 8), (5, 2), sizes), own, dim, first)
    for start, stop in itertools.combinations(range(13), 2):
        whole = torch.full((9, 8), -1.0)
        for box, values in flat_boxes(held, own.view(-1)[start:stop], start):
            assert held.box.holds(box)
            assert values.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()
            whole[box.offsets[0] : box.offsets[0] + box.sizes[0], box.offsets[1] : box.offsets[1] + box.sizes[1]] = (
                values
            )
        expected = torch.where((own >= start) & (own < stop), own, -1.0)
        assert torch.equal(whole[5 : 5 + sizes[0], 2 : 2 + sizes[1]], held.view_of(expected))
