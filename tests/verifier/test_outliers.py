"""Outer fences by hand-made numbers; nothing is ever left out of the plain mean and median."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_runtime.verifier.outliers import flag_outliers


def test_outer_fences_are_three_quartile_ranges_away() -> None:
    values = [10, 11, 12, 13, 14, 15, 16, 17, 18]  # quartiles 12 and 16: fences 0 and 28
    flagged = flag_outliers([*values[:4], 14, 28, 0, *values[5:]])
    assert flagged.indexes == ()
    flagged = flag_outliers([30, *values, 1000])
    assert flagged.indexes == (10,)
    assert flagged.mean == Fraction(30 + sum(values) + 1000, 11)
    assert flagged.mean_without == Fraction(30 + sum(values), 10)
    assert (flagged.median, flagged.median_without) == (15, Fraction(29, 2))


def test_few_or_equal_values_have_no_outliers_and_none_is_an_error() -> None:
    assert flag_outliers([1, 10**9]).indexes == ()
    assert flag_outliers([5] * 20).indexes == ()
    assert flag_outliers([5] * 20 + [6]).indexes == (20,)
    with pytest.raises(ValueError, match="no values"):
        flag_outliers([])


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=40), st.integers(1, 1000))
def test_flags_do_not_depend_on_the_unit_nor_change_the_plain_mean(values: list[int], unit: int) -> None:
    flagged, scaled = flag_outliers(values), flag_outliers([value * unit for value in values])
    assert flagged.indexes == scaled.indexes
    assert flagged.mean == Fraction(sum(values), len(values))
    assert scaled.mean_without == flagged.mean_without * unit
    assert len(flagged.indexes) < len(values)
