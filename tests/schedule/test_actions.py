from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_runtime.schedule.actions import (
    NO_MICROBATCH,
    Action,
    Kind,
    Overlap,
    flatten,
    parse_action,
    parse_actions,
    parse_cell,
    texts,
)

NUMBERS = st.integers(0, 999_999_999)
ACTIONS = st.builds(Action, NUMBERS, st.sampled_from([kind for kind in Kind if not kind.is_data_parallel]), NUMBERS)
DATA_PARALLEL = st.builds(
    Action, NUMBERS, st.sampled_from([kind for kind in Kind if kind.is_data_parallel]), st.just(NO_MICROBATCH)
)
OVERLAPS = st.builds(
    Overlap,
    st.builds(Action, NUMBERS, st.just(Kind.F), NUMBERS),
    st.builds(Action, NUMBERS, st.sampled_from([Kind.B, Kind.I]), NUMBERS),
)


@given(ACTIONS | DATA_PARALLEL | OVERLAPS)
def test_printing_and_reading_round_trip(cell: Action | Overlap) -> None:
    assert parse_cell(str(cell)) == cell


@pytest.mark.parametrize("text", ["2F0", "1I2", "0W3", "3B1", "3SEND_F1", "0RECV_B2", "0UNSHARD", "11REDUCE_GRAD"])
def test_texts(text: str) -> None:
    assert str(parse_action(text)) == text
    assert str(parse_cell(text)) == text


def test_an_overlap() -> None:
    overlap = parse_cell("(0F7;7B3)OVERLAP_F_B")
    assert overlap == Overlap(Action(0, Kind.F, 7), Action(7, Kind.B, 3))
    assert texts((overlap, Action(1, Kind.W, 2))) == ("(0F7;7B3)OVERLAP_F_B", "1W2")
    assert flatten([Action(0, Kind.F, 0), overlap]) == parse_actions(["0F0", "0F7", "7B3"])


@pytest.mark.parametrize(
    "text",
    ["", "2B0junk", "x2B0", "F0", "2F", "-1F0", "2F-1", "2X0", "2f0", "2 F0", "02F0", "2F00", "٣F0", "2SEND_W0",
     "0UNSHARD3", "1234567890F0", "2F0\n"],
)  # fmt: skip
def test_what_is_no_action(text: str) -> None:
    with pytest.raises(ValueError, match="is not an action"):
        parse_action(text)


@pytest.mark.parametrize(
    "text",
    [
        "(0F7;7B3)",
        "(0F7)OVERLAP_F_B",
        "(0F7;7B3;1F0)OVERLAP_F_B",
        "(0F7;7B3)OVERLAP_F_B ",
        "((0F7;7B3)OVERLAP_F_B;1B0)OVERLAP_F_B",
        "(7B3;0F7)OVERLAP_F_B",
        "(0F7;7W3)OVERLAP_F_B",
        "(0F7;7B)OVERLAP_F_B",
        "(0F7;7B3)OVERLAP_B_F",
        "()OVERLAP_F_B",
    ],
)
def test_what_is_no_overlap(text: str) -> None:
    with pytest.raises(ValueError, match=r"overlap|is not an action"):
        parse_cell(text)


def test_kinds() -> None:
    assert [kind.value for kind in Kind if kind.is_compute] == ["F", "I", "W", "B", "EF", "EB", "P", "D"]
    assert [kind.value for kind in Kind if kind.is_served] == ["P", "D"]
    assert [kind.value for kind in Kind if kind.is_lookup] == ["EF", "EB"]
    assert [kind.value for kind in Kind if kind.is_data_parallel] == ["UNSHARD", "RESHARD", "REDUCE_GRAD"]
