from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from hybrid_runtime.planner.embedding_rows import pieces_of
from hybrid_runtime.planner.rows import fill_rows, rows_multiple, water_level


def test_by_hand() -> None:
    assert water_level([10, 4, 1], 6) == Fraction(11, 2)
    assert water_level([1, 1], 100) == 51
    assert fill_rows([10, 4, 1], 6, Fraction(1), 1) == (0, 1, 5) or fill_rows([10, 4, 1], 6, Fraction(1), 1) == (
        0,
        2,
        4,
    )
    assert fill_rows([0, 0], 130, Fraction(2), 64) == (64, 66)  # what does not divide goes to the last rank with rows


@given(
    held=st.lists(st.integers(0, 10**9), min_size=1, max_size=8),
    rows=st.integers(0, 5000),
    per_row=st.fractions(Fraction(1, 2), 10**5, max_denominator=4),
    multiple=st.integers(1, 128),
)
def test_rows_are_never_lost_and_level_out(held: list[int], rows: int, per_row: Fraction, multiple: int) -> None:
    found = fill_rows(held, rows, per_row, multiple)
    assert sum(found) == rows
    assert min(found) >= 0
    block = per_row * multiple
    filled = [here + count * per_row for here, count in zip(held, found)]
    raised = [level for level, count in zip(filled, found) if count]
    if raised:  # no rank that got rows is a block and more above one that could have taken them
        assert max(raised) <= max(min(filled) + 2 * block, max(held, default=0) + 2 * block)
        assert max(raised) - min(filled) <= 2 * block


def test_multiples() -> None:
    assert rows_multiple(128256, 1, 8) == 64
    assert rows_multiple(128256, 8, 4) == 8  # 64 on each of 8 tensor ranks would be too coarse
    assert rows_multiple(256, 2, 3) == 2


def test_pieces_are_contiguous_and_named() -> None:
    assert pieces_of((4, 0, 8), "embedding") == ("embedding[0:4]", "", "embedding[4:12]")
    assert pieces_of((), "embedding") == ()
