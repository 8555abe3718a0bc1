from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.planted import BASE_UNITS, LEVELS, extra_units, part_units, planted_gap


@pytest.mark.parametrize("ranks", [2, 3, 6, 64])
def test_what_is_planted_is_what_counting_units_says(ranks: int) -> None:
    parts = part_units(ranks)
    for level, wanted in enumerate(LEVELS):
        extra = sum(parts[: level + 1])
        assert extra == extra_units(wanted, ranks)
        amounts = [BASE_UNITS + extra] + [BASE_UNITS] * (ranks - 1)
        gap = Fraction(max(amounts) - min(amounts), sum(amounts))
        assert gap == planted_gap(extra, ranks)
        assert abs(gap - wanted) < Fraction(1, 1000)
    assert all(units > 0 for units in parts)
