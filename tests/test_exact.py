"""Shares, sizes and rates: read exactly, refused without a unit."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_runtime.exact import decimal_text, exact_text, parse_bytes, parse_gb_per_s, parse_share, sums_to_one


def test_the_comparison_that_binary_floats_get_wrong() -> None:
    assert not 0.34 - 0.33 <= 0.01
    assert parse_share("34%").value - parse_share("33%").value <= Fraction(1, 100)


@pytest.mark.parametrize(
    ("text", "value", "half_unit"),
    [
        ("34%", Fraction(34, 100), Fraction(1, 200)),
        ("33.33%_computation", Fraction(3333, 10_000), Fraction(1, 20_000)),
        (" 33.330 %_memory ", Fraction(3333, 10_000), Fraction(1, 200_000)),
        ("0%", Fraction(0), Fraction(1, 200)),
        ("34.0000001%", Fraction(340000001, 10**9), Fraction(1, 2 * 10**9)),
    ],
)
def test_share(text: str, value: Fraction, half_unit: Fraction) -> None:
    share = parse_share(text)
    assert (share.text, share.value, share.half_unit) == (text, value, half_unit)


@pytest.mark.parametrize(
    "text", ["34", "0.34", "", "%", "-1%", "1e2%", ".5%", "5.%", "3 4%", "٣٣%", "NaN%", "34%%", "34%-x"]
)
def test_a_share_without_a_plain_number_and_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="% unit"):
        parse_share(text)


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (["33%", "33%", "34%"], True),
        (["33%", "33%", "33%"], True),  # 99, and each may hide half a percent
        (["33.0%", "33.0%", "33.0%"], False),
        (["33.3%", "33.3%", "33.3%"], True),
        (["50.00%", "50.02%"], False),
        ([], False),
    ],
)
def test_shares_sum_to_one_within_their_own_rounding(texts: list[str], whole: bool) -> None:
    assert sums_to_one([parse_share(text) for text in texts]) is whole


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("32 GB", 32 * 10**9),
        ("24GiB", 24 * 2**30),
        ("1.5 kB", 1500),
        ("80 TB", 80 * 10**12),
        ("0.000000001 GB", 1),
        ("123456789012.123456789 TiB", 123456789012123456789 * 2**40 // 10**9),  # 34 digits: Decimal would round
    ],
)
def test_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["32", "32 gb", "GB", "-1 GB", "1e3 GB", "32 GB/s", "٣ GB"])
def test_a_size_without_its_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="GiB"):
        parse_bytes(text)


def test_link_rate() -> None:
    assert parse_gb_per_s("300.5 GB/s") == Fraction(601, 2)
    with pytest.raises(ValueError, match="GB/s"):
        parse_gb_per_s("300 GB")


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (Fraction(1, 3), 4, "0.3333"),
        (Fraction(-1, 3), 2, "-0.33"),
        (Fraction(-1, 10**9), 2, "0"),
        (Fraction(5, 2), 0, "2"),
        (Fraction(100), 4, "100"),
        (Fraction(10), 0, "10"),
        (Fraction(105, 100), 4, "1.05"),
    ],
)
def test_decimal_text(value: Fraction, places: int, text: str) -> None:
    assert decimal_text(value, places) == text


@given(st.fractions())
def test_exact_text_loses_nothing(value: Fraction) -> None:
    assert Fraction(exact_text(value)) == value


@given(st.integers(0, 10**12), st.integers(0, 12))
def test_a_share_is_read_exactly(digits: int, places: int) -> None:
    whole, rest = divmod(digits, 10**places)
    if whole < 10**6:
        text = f"{whole}.{rest:0{places}d}%" if places else f"{whole}%"
        assert parse_share(text).value == Fraction(digits, 100 * 10**places)
