from __future__ import annotations

from hybrid_runtime.schedule.footprint import peak_in_flight, receive_depth
from hybrid_runtime.schedule.forward_only import forward_only
from hybrid_runtime.schedule.gpipe import gpipe
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.one_f_one_b import one_f_one_b
from tests.schedule.drawn import read_drawing
from tests.schedule.test_lower import ZERO_BUBBLE_H1, ZERO_BUBBLE_V


def test_peaks() -> None:
    assert list(map(peak_in_flight, gpipe(3, 5))) == [5, 5, 5]
    assert list(map(peak_in_flight, one_f_one_b(4, 16))) == [4, 3, 2, 1]
    assert list(map(peak_in_flight, one_f_one_b(4, 2))) == [2, 2, 2, 1]
    assert list(map(peak_in_flight, forward_only(2, 9))) == [1, 1]


def test_a_microbatch_is_held_until_its_weight_gradient() -> None:
    assert list(map(peak_in_flight, ZERO_BUBBLE_H1)) == [2, 2]
    assert list(map(peak_in_flight, ZERO_BUBBLE_V)) == [4, 4]  # two stages on each of two ranks: 2 whole microbatches


def test_receive_depth_counts_posted_and_not_yet_consumed() -> None:
    lists = read_drawing("""
rank 0 | F0 SEND_F0 F1 SEND_F1 F2 SEND_F2
rank 1 | RECV_F0 F0 RECV_F1 RECV_F2 F1 F2""")
    assert receive_depth(lists, (0, 1)) == {"0>1": 2}
    assert receive_depth(lower(one_f_one_b(3, 6), (0, 1, 2)), (0, 1, 2)) == {"0>1": 2, "1>0": 2, "1>2": 2, "2>1": 2}
