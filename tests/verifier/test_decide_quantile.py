"""The rule for latencies: exact at the limit, ten requests beyond a quantile, no surer than its rounds are alike."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decide_quantile import decide_quantile, quantile_interval, requests_needed

MEDIAN, P90, P99 = Fraction(1, 2), Fraction(9, 10), Fraction(99, 100)


def drawn(rounds: int, requests: int, seed: int, of_rounds: float = 0.0) -> list[list[Fraction]]:
    chance = random.Random(seed)
    found = []
    for _ in range(rounds):
        level = chance.gauss(0, of_rounds)
        found.append([Fraction(round(1000 * 2.718 ** (level + chance.gauss(0, 0.5)))) for _ in range(requests)])
    return found


def test_ten_requests_lie_beyond_a_quantile() -> None:
    assert [requests_needed(part) for part in (MEDIAN, P90, P99)] == [20, 100, 1000]
    assert decide_quantile(drawn(11, 9, 0), P90, Fraction(10**9), 1) is None
    assert decide_quantile(drawn(20, 5, 0), P90, Fraction(10**9), 1) is not None


@pytest.mark.parametrize(("limit", "outcome"), [(7, Outcome.PASS), (Fraction(69999999, 10**7), Outcome.FAIL)])
def test_latencies_without_spread_are_compared_exactly(limit: Fraction, outcome: Outcome) -> None:
    decision = decide_quantile([[Fraction(7)] * 10] * 12, P90, Fraction(limit), 1)
    assert decision is not None
    assert (decision.outcome, decision.point, decision.lower, decision.upper) == (outcome, 7, 7, 7)


def test_the_bounds_of_independent_requests_are_their_order_statistics() -> None:
    """Of 100 requests the 59th smallest bounds the median from above at 95 %, the 42nd from below (binomial tables)."""
    steps = [[Fraction(10 * place + row) for place in range(10)] for row in range(10)]  # every round has the same mix
    decision = quantile_interval(steps, MEDIAN, 1)
    assert decision is not None
    ordered = sorted(latency for step in steps for latency in step)
    assert (decision.lower, decision.point, decision.upper) == (ordered[41], ordered[49], ordered[58])


def test_rounds_that_differ_make_the_interval_wider() -> None:
    alike, unlike = (quantile_interval(drawn(40, 8, 1, spread), MEDIAN, 1) for spread in (0.0, 0.8))
    assert alike is not None
    assert unlike is not None
    assert (unlike.upper / unlike.lower) > 1.5 * (alike.upper / alike.lower)


def test_few_rounds_decide_nothing_however_many_requests_they_have() -> None:
    decision = decide_quantile(drawn(4, 200, 2), MEDIAN, Fraction(10**6), 1)
    assert decision is not None
    assert (decision.outcome, decision.reason) == (Outcome.INCONCLUSIVE, "too_few_batches")
    assert decision.more_needed == 6


def in_turn(rounds: int) -> list[list[Fraction]]:
    return [[Fraction(1000 if number // 15 % 2 else 1)] * 8 for number in range(rounds)]


def test_rounds_that_differ_too_much_say_how_many_it_takes() -> None:
    """Fast and slow rounds, as many in a row as half of a batch can be: neither side has a bound."""
    steps = in_turn(60)
    decision = quantile_interval(steps, MEDIAN, 1)
    assert decision is not None
    assert (decision.reason, decision.lower, decision.upper) == ("too_few_batches", 0, 1000)
    assert decision.note.startswith("rounds differ too much to bound the quantile; about ")
    assert decision.note.endswith(" more rounds needed")
    assert decision.more_needed is not None
    later = quantile_interval(in_turn(60 + 4 * decision.more_needed), MEDIAN, 1)
    assert later is not None
    assert later.reason is None


def test_latencies_that_grow_over_the_limit_decide_nothing() -> None:
    steps = [[latency + 40 * number for latency in step] for number, step in enumerate(drawn(60, 8, 3))]
    middle = sorted(latency for step in steps for latency in step)[240]
    decision = decide_quantile(steps, MEDIAN, middle, 1)
    assert decision is not None
    assert (decision.outcome, decision.reason) == (Outcome.INCONCLUSIVE, "no_steady_state")


def test_a_truth_at_the_limit_is_seldom_passed_and_seldom_failed() -> None:
    """200 runs at the limit: each error in 5 % of them on average; 18 or more is one in 100 of such counts."""
    ends = [
        decision.outcome
        for seed in range(200)
        if (decision := decide_quantile(drawn(20, 8, seed, 0.2), MEDIAN, Fraction(1000), 1)) is not None
    ]
    assert len(ends) == 200
    assert ends.count(Outcome.PASS) < 18
    assert ends.count(Outcome.FAIL) < 18
