"""Every schedule, drawn for two ranks and four microbatches, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Action, Kind
from hybrid_runtime.schedule.placement import linear, loop, v_shape
from hybrid_runtime.schedule.registry import SCHEDULES, find_schedule, generate, generate_cells, stages_per_rank
from hybrid_runtime.schedule.render import render

GOLDEN = {
    "gpipe": """\
rank 0 | F0 F1 F2 F3 B0 B1 B2 B3
rank 1 | F0 F1 F2 F3 B0 B1 B2 B3""",
    "1f1b": """\
rank 0 | F0 F1 B0 F2 B1 F3 B2 B3
rank 1 | F0 B0 F1 B1 F2 B2 F3 B3""",
    "interleaved_1f1b": """\
rank 0 | 0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3
rank 1 | 1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3""",
    "zb_h1": """\
rank 0 | F0 F1 I0 W0 F2 I1 W1 F3 I2 W2 I3 W3
rank 1 | F0 I0 F1 I1 W0 F2 I2 W1 F3 I3 W2 W3""",
    "interleaved_zb": """\
rank 0 | 0F0 0F1 2F0 2F1 2I0 2W0 0F2 2I1 2W1 0F3 0I0 0W0 2F2 0I1 0W1 2F3 2I2 2W2 2I3 2W3 0I2 0W2 0I3 0W3
rank 1 | 1F0 1F1 3F0 3I0 3F1 3I1 3W0 1F2 1I0 3W1 1F3 1I1 1W0 3F2 3I2 1W1 3F3 3I3 3W2 1I2 3W3 1I3 1W2 1W3""",
    "zb_h2": """\
rank 0 | F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3
rank 1 | F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3""",
    "zb_v": """\
rank 0 | 0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0F3 0I0 0W0 3F2 3I2 3W2 0I1 0W1 3F3 3I3 3W3 0I2 0W2 0I3 0W3
rank 1 | 1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1F3 1I1 1W1 2F3 2I2 2W2 1I2 2I3 1I3 1W2 2W3 1W3""",
    "dualpipe_v": """\
rank 0 | 0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3 3B1 3F2 0B0 3B2 3F3 0B1 3B3 0I2 0W2 0I3 0W3
rank 1 | 1F0 2F0 1F1 2F1 1F2 2B0 2F2 1B0 1F3 2B1 2F3 1B1 2B2 1B2 2I3 1I3 2W3 1W3""",
    "v_half": """\
rank 0 | 0F0 3F0 0F1 3I0 3W0 3F1 0F2 0I0 3I1 0W0 3F2 3W1 0F3 0I1 3I2 0W1 3F3 3W2 0I2 3I3 0W2 3W3 0I3 0W3
rank 1 | 1F0 2F0 1F1 2F1 2I0 2W0 1I0 1W0 1F2 2F2 2I1 2W1 1I1 1W1 1F3 2F3 2I2 2W2 1I2 1W2 2I3 2W3 1I3 1W3""",
    "v_min": """\
rank 0 | 0F0 3F0 3I0 3W0 0F1 0I0 0W0 3F1 3I1 3W1 0F2 0I1 0W1 3F2 3I2 3W2 0F3 0I2 0W2 3F3 3I3 3W3 0I3 0W3
rank 1 | 1F0 2F0 2I0 1I0 1F1 2F1 2W0 1W0 2I1 1I1 1F2 2F2 2W1 1W1 2I2 1I2 1F3 2F3 2W2 1W2 2I3 1I3 2W3 1W3""",
}

FORWARD: dict[Callable[[int, int], tuple[int, ...]], str] = {
    linear: """\
rank 0 | F0 F1 F2 F3
rank 1 | F0 F1 F2 F3""",
    loop: """\
rank 0 | 0F0 0F1 2F0 2F1 0F2 0F3 2F2 2F3
rank 1 | 1F0 1F1 3F0 3F1 1F2 1F3 3F2 3F3""",
    v_shape: """\
rank 0 | 0F0 0F1 0F2 3F0 0F3 3F1 3F2 3F3
rank 1 | 1F0 2F0 1F1 2F1 1F2 2F2 1F3 2F3""",
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_drawn(name: str) -> None:
    assert render(generate(name, 2, 4, "train")) == GOLDEN[name]
    assert render(generate(name, 2, 4, "forward")) == FORWARD[find_schedule(name).placement]


def test_what_overlaps_in_dualpipe_v() -> None:
    overlaps = [
        [str(cell) for cell in cells if "(" in str(cell)] for cells in generate_cells("dualpipe_v", 2, 4, "train")
    ]
    assert overlaps == [
        ["(0F3;3B1)OVERLAP_F_B", "(3F2;0B0)OVERLAP_F_B", "(3F3;0B1)OVERLAP_F_B"],
        ["(2F2;1B0)OVERLAP_F_B", "(1F3;2B1)OVERLAP_F_B", "(2F3;1B1)OVERLAP_F_B"],
    ]


def test_any_number_of_stages_per_rank() -> None:
    drawing = """\
rank 0 | 0F0 0F1 2F0 2F1 4F0 4F1 4B0 4B1 2B0 2B1 0B0 0B1
rank 1 | 1F0 1F1 3F0 3F1 5F0 5B0 5F1 5B1 3B0 3B1 1B0 1B1"""
    assert render(generate("interleaved_1f1b", 2, 2, "train", 3)) == drawing
    assert stages_per_rank("interleaved_zb", 5) == 5
    assert find_schedule("interleaved_zb").place(3, 3) == (0, 1, 2, 0, 1, 2, 0, 1, 2)


def test_placements() -> None:
    assert find_schedule("zb_h2").place(3) == (0, 1, 2)
    assert find_schedule("interleaved_1f1b").place(3) == (0, 1, 2, 0, 1, 2)
    assert find_schedule("v_min").place(3) == (0, 1, 2, 2, 1, 0)
    assert v_shape(2, 3) == (0, 1, 1, 0, 0, 1)


@pytest.mark.parametrize(
    ("name", "num_microbatches", "virtual_stages", "message"),
    [
        ("dualpipe_v", 7, None, "dualpipe_v on 4 pipeline ranks needs at least 8 microbatches, not 7"),
        ("interleaved_1f1b", 9, None, "make 2 rounds, which are not equal: .* accepts 8 or 10 microbatches"),
        ("interleaved_zb", 13, None, "make 3 rounds, .* accepts 12 or 15 microbatches"),
        ("zb_v", 8, 3, "virtual_stages = 3: zb_v has exactly 2 on each pipeline rank; leave virtual_stages out"),
        ("1f1b", 8, 2, "virtual_stages = 2: 1f1b has exactly 1 on each"),
        ("interleaved_zb", 8, 0, "virtual_stages = 0: interleaved_zb has 1 or more stages on each"),
    ],
)
def test_what_is_not_accepted_names_what_is(
    name: str, num_microbatches: int, virtual_stages: int | None, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        generate(name, 4, num_microbatches, "train", virtual_stages)


@pytest.mark.parametrize("name", SCHEDULES)
def test_everything_is_done_once_on_its_own_rank(name: str) -> None:
    for pp_degree in (1, 2, 3, 4, 5, 8):
        for num_microbatches in {
            1,
            2,
            pp_degree - 1,
            pp_degree + 1,
            2 * pp_degree,
            3 * pp_degree - 1,
            4 * pp_degree + 2,
        }:
            if num_microbatches == 0:
                continue
            try:
                lists = generate(name, pp_degree, num_microbatches, "train")
            except PlanError:
                assert name.startswith(("interleaved", "dualpipe"))
                continue
            done = [action for actions in lists for action in actions]
            assert len(done) == len(set(done))
            place = find_schedule(name).place(pp_degree)
            assert all(place[action.stage] == rank for rank, actions in enumerate(lists) for action in actions)
            assert _counted(done) == {
                Action(stage, kind, microbatch)
                for stage in range(len(place))
                for kind in (Kind.F, Kind.I, Kind.W)
                for microbatch in range(num_microbatches)
            }


def _counted(done: list[Action]) -> set[Action]:
    halves = {Kind.B: (Kind.I, Kind.W)}
    return {
        Action(action.stage, kind, action.microbatch)
        for action in done
        for kind in halves.get(action.kind, (action.kind,))
    }
