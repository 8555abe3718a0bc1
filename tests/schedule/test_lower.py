from __future__ import annotations

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import ActionList
from hybrid_runtime.schedule.check import check
from hybrid_runtime.schedule.gpipe import gpipe
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.one_f_one_b import one_f_one_b
from hybrid_runtime.schedule.registry import find_schedule, generate
from hybrid_runtime.schedule.render import render
from hybrid_runtime.schedule.walk import walk
from tests.schedule.drawn import read_drawing

V_SHAPE = (0, 1, 1, 0)
# a zero-bubble schedule in V placement: two stages a rank, split backward, both payloads on both edges
ZERO_BUBBLE_V = read_drawing("""
rank 0 | 0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0F3 0I0 0W0 3F2 3I2 3W2 0I1 0W1 3F3 3I3 3W3 0I2 0W2 0I3 0W3
rank 1 | 1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1F3 1I1 1W1 2F3 2I2 2W2 1I2 2I3 1I3 1W2 2W3 1W3""")
ZERO_BUBBLE_H1 = read_drawing("""
rank 0 | 0F0 0F1 0I0 0W0 0F2 0I1 0W1 0F3 0I2 0W2 0I3 0W3
rank 1 | 1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1F3 1I3 1W2 1W3""")


def test_drawn() -> None:
    drawing = """\
rank 0 | RECV_B0 RECV_B1 F0 SEND_F0 F1 SEND_F1 B0 RECV_B2 F2 SEND_F2 B1 B2
rank 1 | RECV_F0 RECV_F1 F0 RECV_F2 B0 SEND_B0 F1 B1 SEND_B1 F2 B2 SEND_B2"""
    assert render(lower(one_f_one_b(2, 3), (0, 1))) == drawing


def test_the_drawing_in_the_module() -> None:
    compute = read_drawing("""
rank 0 | F0 F1 B0 B1
rank 1 | F0 B0 F1 B1""")
    drawing = """\
rank 0 | RECV_B0 RECV_B1 F0 SEND_F0 F1 SEND_F1 B0 B1
rank 1 | RECV_F0 RECV_F1 F0 B0 SEND_B0 F1 B1 SEND_B1"""
    assert render(lower(compute, (0, 1))) == drawing


def test_a_pool_of_one_receives_one_at_a_time() -> None:
    drawing = """\
rank 0 | RECV_B0 F0 SEND_F0 F1 SEND_F1 B0 RECV_B1 B1
rank 1 | RECV_F0 F0 RECV_F1 F1 B0 SEND_B0 B1 SEND_B1"""
    assert render(lower(gpipe(2, 2), (0, 1), pool_depth=1)) == drawing


def test_receives_follow_the_senders_order_even_beyond_the_pool_depth() -> None:
    # rank 0 sends F0 F1 F2 F3, rank 1 takes F3 first: all four must be posted before it
    compute = read_drawing("""
rank 0 | F0 F1 F2 F3
rank 1 | F3 F0 F1 F2""")
    lowered = lower(compute, (0, 1))
    assert render(lowered).splitlines()[1] == "rank 1 | RECV_F0 RECV_F1 RECV_F2 RECV_F3 F3 F0 F1 F2"
    assert check(lowered, (0, 1), 4, "forward").receive_depth == {"0>1": 4}


def test_no_messages_on_one_rank() -> None:
    compute = read_drawing("rank 0 | 0F0 1F0 1B0 0B0")
    assert lower(compute, (0, 0)) == compute


@pytest.mark.parametrize("pool_depth", [1, 2, 4])
def test_split_backward(pool_depth: int) -> None:
    lowered = lower(ZERO_BUBBLE_H1, (0, 1), pool_depth=pool_depth)
    assert check(lowered, (0, 1), 4, "train").findings == ()
    assert compute_of(lowered) == ZERO_BUBBLE_H1


@pytest.mark.parametrize("pool_depth", [2, 3, 4])
def test_several_stages_on_a_rank(pool_depth: int) -> None:
    lowered = lower(ZERO_BUBBLE_V, V_SHAPE, pool_depth=pool_depth)
    assert check(lowered, V_SHAPE, 4, "train").findings == ()
    assert compute_of(lowered) == ZERO_BUBBLE_V


def test_a_pool_that_would_block_both_ranks_is_made_deeper() -> None:
    # with one buffer per edge 0SEND_F3 and 2SEND_F2 would wait for each other's receives
    lowered = lower(ZERO_BUBBLE_V, V_SHAPE, pool_depth=1)
    assert walk(lowered, V_SHAPE, rendezvous=True) == ()
    assert lowered == lower(ZERO_BUBBLE_V, V_SHAPE, pool_depth=2) != lower(ZERO_BUBBLE_V, V_SHAPE, pool_depth=3)
    interleaved = generate("interleaved_zb", 8, 32, "train", 4)
    loop = find_schedule("interleaved_zb").place(8, 4)
    assert check(lower(interleaved, loop), loop, 32, "train").receive_depth["3>4"] == 5


def test_lists_that_cannot_run_are_lowered_all_the_same() -> None:
    stuck = read_drawing("""
rank 0 | B0 F0
rank 1 | F0 B0""")
    assert [finding.action for finding in check(lower(stuck, (0, 1)), (0, 1), 1, "train").findings] == ["0B0", "1F0"]


def compute_of(lists: tuple[ActionList, ...]) -> tuple[ActionList, ...]:
    return tuple(tuple(action for action in actions if action.kind.is_compute) for actions in lists)


def test_sent_to_nobody() -> None:
    first, second = gpipe(2, 2)
    with pytest.raises(PlanError, match="0SEND_F1 has no taker: pipeline rank 1 has no action that needs 1RECV_F1"):
        lower((first, tuple(action for action in second if action.microbatch == 0)), (0, 1))
