"""Paired blocks: equivalence by hand-made numbers, what more pairs are for, and drift."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decide_ratio import decide_equivalence, decide_ratio

ONE_PERCENT = Fraction(1, 100)
PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


def around(mean: Fraction, spread: Fraction, pairs: int = 12) -> list[Fraction]:
    """Ratios of a known spread without a drift: + - - + + - - + ..."""
    return [mean * (1 + spread * (1 if index % 4 in (0, 3) else -1)) for index in range(pairs)]


@pytest.mark.parametrize("pairs", [5, 12])
def test_equal_ratios_are_equivalent_up_to_and_with_the_margin(pairs: int) -> None:
    for ratio, outcome in (
        (Fraction(1), PASS),
        (Fraction(101, 100), PASS),
        (Fraction(100, 101), PASS),
        (Fraction(101, 100) + Fraction(1, 10**12), FAIL),
        (Fraction(100, 101) - Fraction(1, 10**12), FAIL),
    ):
        assert decide_equivalence([ratio] * pairs, ONE_PERCENT).outcome is outcome


def test_the_whole_interval_must_be_inside_or_outside() -> None:
    small, large = Fraction(2, 1000), Fraction(3, 100)
    assert decide_equivalence(around(Fraction(1), small), ONE_PERCENT).outcome is PASS
    for mean in (Fraction(105, 100), Fraction(95, 100)):
        assert decide_equivalence(around(mean, small), ONE_PERCENT).outcome is FAIL
    wide = decide_equivalence(around(Fraction(1), large), ONE_PERCENT)
    assert (wide.outcome, wide.reason) == (INCONCLUSIVE, "interval_straddles_threshold")
    assert wide.lower < Fraction(100, 101) < Fraction(101, 100) < wide.upper
    assert decide_equivalence(around(Fraction(1), small, 4), ONE_PERCENT).reason == "too_few_batches"


def test_a_smaller_budget_gives_a_wider_interval() -> None:
    ratios = around(Fraction(7, 10), ONE_PERCENT)
    wide, narrow = (decide_ratio(ratios, Fraction(7, 10), alpha=alpha) for alpha in (0.01, 0.05))
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


@pytest.mark.parametrize("limit", [Fraction(701, 1000), Fraction(699, 1000)])
def test_as_many_more_pairs_as_asked_for_are_about_enough(limit: Fraction) -> None:
    first = decide_ratio(around(Fraction(7, 10), ONE_PERCENT), limit)
    assert first.outcome is INCONCLUSIVE
    assert first.more_needed is not None
    assert "more block pairs needed" in first.note
    more = decide_ratio(around(Fraction(7, 10), ONE_PERCENT, 12 + first.more_needed), limit)
    assert more.outcome is (PASS if limit > Fraction(7, 10) else FAIL)
    half = decide_ratio(around(Fraction(7, 10), ONE_PERCENT, 12 + first.more_needed // 3), limit)
    assert half.outcome is INCONCLUSIVE


def test_no_number_of_pairs_helps_on_the_limit_itself() -> None:
    balanced = [Fraction(7, 10) * Fraction(101, 100), Fraction(7, 10) * Fraction(100, 101)] * 6
    decision = decide_ratio(balanced, Fraction(7, 10))
    assert decision.outcome is INCONCLUSIVE
    assert decision.more_needed is None


def test_wild_ratios_give_a_wide_interval_and_no_overflow() -> None:
    decision = decide_ratio([Fraction(10**200), Fraction(1, 10**200)] * 3, Fraction(1, 2), alpha=0.001)
    assert decision.outcome is INCONCLUSIVE
    assert decision.lower < decision.point < decision.upper
