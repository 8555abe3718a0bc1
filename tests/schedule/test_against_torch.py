"""The compute lists are those of torch.distributed.pipelining, so that lists can be exchanged and timings compared."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import CellList, Kind, flatten, parse_cell, texts
from hybrid_runtime.schedule.registry import find_schedule, generate_cells

PAIRS = [
    ("gpipe", 1, "ScheduleGPipe"),
    ("interleaved_1f1b", 1, "ScheduleInterleaved1F1B"),
    ("interleaved_1f1b", 2, "ScheduleInterleaved1F1B"),
    ("interleaved_1f1b", 4, "ScheduleInterleaved1F1B"),
    ("interleaved_zb", 1, "ScheduleInterleavedZeroBubble"),
    ("interleaved_zb", 2, "ScheduleInterleavedZeroBubble"),
    ("interleaved_zb", 4, "ScheduleInterleavedZeroBubble"),
    ("zb_v", 2, "ScheduleZBVZeroBubble"),
    ("dualpipe_v", 2, "ScheduleDualPipeV"),
]


def torch_rows(class_name: str, pp_degree: int, num_microbatches: int, virtual_stages: int) -> dict[int, list[Any]]:
    """What a torch schedule wants to run; its stages are only asked where they are."""
    kind = getattr(torch_schedules, class_name)
    stages = [
        SimpleNamespace(
            group_size=pp_degree,
            group_rank=0,
            num_stages=pp_degree * virtual_stages,
            stage_index=index,
            is_last=False,
            is_first=False,
            has_backward=True,
            submod=None,
        )
        for index in range(virtual_stages)
    ]
    single = issubclass(kind, torch_schedules.PipelineScheduleSingle)
    schedule = kind(stages[0] if single else stages, num_microbatches, loss_fn=lambda *_: None)
    return dict(schedule.pipeline_order)


def read(rows: dict[int, list[Any]]) -> list[CellList]:
    return [tuple(parse_cell(str(action)) for action in rows[rank] if action is not None) for rank in sorted(rows)]


def compute(cells: CellList) -> list[str]:
    return [str(action) for action in flatten(cells) if action.kind.is_compute]


@pytest.mark.parametrize(("name", "virtual_stages", "class_name"), PAIRS)
def test_same_lists(name: str, virtual_stages: int, class_name: str) -> None:
    compared = 0
    for pp_degree in (2, 3, 4, 8):
        for num_microbatches in (2 * pp_degree, 2 * pp_degree + 1, 3 * pp_degree, 4 * pp_degree):
            try:
                ours = generate_cells(name, pp_degree, num_microbatches, "train", virtual_stages)
            except PlanError:
                with pytest.raises(ValueError, match=r"(?i)microbatches"):
                    torch_rows(class_name, pp_degree, num_microbatches, virtual_stages)
                continue
            theirs = read(torch_rows(class_name, pp_degree, num_microbatches, virtual_stages))
            assert list(map(compute, ours)) == list(map(compute, theirs)), (pp_degree, num_microbatches)
            compared += 1
    assert compared >= 12


def test_1f1b_but_for_the_last_rank() -> None:
    """torch 2.13 numbers the last rank's forwards from 1 in this list (it executes 1F1B without it)."""
    for pp_degree in (2, 3, 4, 8):
        ours = generate_cells("1f1b", pp_degree, 3 * pp_degree, "train")
        theirs = read(torch_rows("Schedule1F1B", pp_degree, 3 * pp_degree, 1))
        assert list(map(compute, ours[:-1])) == list(map(compute, theirs[:-1]))
        assert compute(theirs[-1])[0] == f"{pp_degree - 1}F1"


def test_zb_h1_is_interleaved_zb_with_one_stage_per_rank() -> None:
    for pp_degree in (1, 2, 3, 4, 8):
        for num_microbatches in (2 * pp_degree, 3 * pp_degree):
            assert generate_cells("zb_h1", pp_degree, num_microbatches, "train") == generate_cells(
                "interleaved_zb", pp_degree, num_microbatches, "train", 1
            )


def test_overlaps_are_torchs_too() -> None:
    ours = generate_cells("dualpipe_v", 4, 10, "train")
    theirs = read(torch_rows("ScheduleDualPipeV", 4, 10, 2))
    assert [_without(cells, Kind.REDUCE_GRAD) for cells in theirs] == list(map(texts, ours))


def _without(cells: CellList, kind: Kind) -> tuple[str, ...]:
    return tuple(text for text in texts(cells) if not text.endswith(kind.value))


@pytest.mark.parametrize(("style", "name"), [("loop", "interleaved_1f1b"), ("v", "zb_v")])
def test_same_placement(style: str, name: str) -> None:
    from torch.distributed.pipelining._utils import generate_stage_to_rank_mapping

    for pp_degree in (1, 2, 3, 8):
        theirs = generate_stage_to_rank_mapping(pp_degree, 2 * pp_degree, style=style)
        ours: Sequence[int] = find_schedule(name).place(pp_degree)
        assert dict(enumerate(ours)) == theirs
