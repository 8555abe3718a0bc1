"""What every rule promises whatever the numbers: exact limits in any spelling, invariance, monotony, honest bounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.deployment import load_deployment
from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decide import decide_exact_range, decide_floor, decide_range
from hybrid_runtime.verifier.decide_ratio import decide_equivalence, decide_ratio
from hybrid_runtime.verifier.decision import Decision

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
ORDER = {FAIL: 0, INCONCLUSIVE: 1, PASS: 2}
BILLION = 10**9

# Each rule on samples without spread whose figure is exactly `share` (0 < share < 1), or a part in 10^9 of it worse.
Rule = Callable[[Fraction, Fraction], Decision]


def _range(share: Fraction, limit: Fraction) -> Decision:
    gap, whole = share.numerator, share.denominator
    return decide_range([[whole + gap, whole - gap]] * 40, limit, 2)


def _exact_range(share: Fraction, limit: Fraction) -> Decision:
    gap, whole = share.numerator, share.denominator
    return decide_exact_range([whole + gap, whole, whole - gap], limit * 2 / 3)


def _ratio(share: Fraction, limit: Fraction) -> Decision:
    return decide_ratio([share] * 6, limit)


def _equivalence(share: Fraction, limit: Fraction) -> Decision:
    slower, faster = decide_equivalence([1 + share] * 6, limit), decide_equivalence([1 / (1 + share)] * 6, limit)
    assert slower.outcome is faster.outcome
    return slower


def _floor(share: Fraction, limit: Fraction) -> Decision:
    """Idle shares, so that here too more is worse."""
    whole = share.denominator
    return decide_floor([[whole, whole - share.numerator, whole]] * 40, 1 - limit, 2)


RULES: list[Rule] = [_range, _exact_range, _ratio, _equivalence, _floor]


def spellings(value: Decimal) -> list[str]:
    """The same number as people, TOML and JSON may write it."""
    plain = f"{value:f}"
    _, digits, exponent = value.as_tuple()
    mantissa = "".join(map(str, digits))
    more = [plain, plain + ("0" if "." in plain else ".0"), plain + ("00" if "." in plain else ".000")]
    return [*more, f"{plain}e0", f"{plain}E+0", f"{mantissa}e{exponent}", f"{mantissa}.0E{exponent}"]


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(digits=st.integers(1, 10**8 - 1), places=st.integers(0, 8), data=st.data())
def test_exactly_the_limit_passes_in_any_spelling_and_a_billionth_more_fails(
    rule: Rule, digits: int, places: int, data: st.DataObject
) -> None:
    percent = Decimal(digits).scaleb(-places) % 100
    if not percent:
        return
    text = data.draw(st.sampled_from(spellings(percent)))
    share = Fraction(percent) / 100
    limit = Fraction(Decimal(text)) / 100
    assert rule(share, limit).outcome is PASS
    assert rule(share * (1 + Fraction(1, BILLION)), limit).outcome is FAIL


SPELLINGS = [*spellings(Decimal("1")), "10e-1", "0.1e1", "1.0000000000000000000000000"]


@pytest.mark.parametrize("text", SPELLINGS)
@pytest.mark.parametrize("kind", ["toml", "json"])
def test_one_pp_passes_however_the_deployment_file_spells_it(text: str, kind: str, tmp_path: Path) -> None:
    amounts = [33 * BILLION, 33 * BILLION, 34 * BILLION]
    limit = _limit_in_file(tmp_path, text, kind)
    assert decide_range([amounts] * 100, limit, 10).outcome is PASS
    assert decide_exact_range(amounts, limit).outcome is PASS
    amounts[2] += 2  # more than a part in 10^9 of the gap
    assert decide_range([amounts] * 100, limit, 10).outcome is FAIL
    assert decide_exact_range(amounts, limit).outcome is FAIL


def _limit_in_file(folder: Path, text: str, kind: str) -> Fraction:
    values = {"name": "x", "model": {"preset": "tiny"}, "parallel": {"pp_degree": 3}}
    values |= {"batch": {"global_batch_size": 8, "microbatch_size": 2, "sequence_length": 128}}
    written = json.dumps(values)[:-1] + f', "targets": {{"compute_balance_pp": {text}}}}}'
    if kind == "toml":
        tables = {name: table for name, table in values.items() if isinstance(table, dict)}
        lines = ['name = "x"', "[targets]", f"compute_balance_pp = {text}"]
        for name, table in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        written = "\n".join(lines)
    file = folder / f"deployment.{kind}"
    file.write_text(written)
    limit = load_deployment(file).targets.compute_balance_pp
    assert limit is not None
    return Fraction(limit) / 100


noisy_steps = st.lists(st.lists(st.integers(900, 1100), min_size=3, max_size=3), min_size=20, max_size=60)
wild_steps = st.lists(st.lists(st.integers(1, BILLION), min_size=3, max_size=3), min_size=20, max_size=40)
limits = st.fractions(0, Fraction(1, 10), max_denominator=10**4)
block_ratios = st.lists(st.fractions(Fraction(1, 2), 2, max_denominator=1000), min_size=1, max_size=30)


def _figures(decision: Decision) -> tuple[object, ...]:
    return decision.outcome, decision.reason, decision.point, decision.lower, decision.upper, decision.more_needed


@settings(max_examples=60, deadline=None)
@given(steps=wild_steps | noisy_steps, order=st.permutations(range(3)), unit=st.sampled_from([1, 7, 10**6]))
def test_floors_do_not_know_which_device_is_which_nor_the_unit(
    steps: list[list[int]], order: list[int], unit: int
) -> None:
    windows = [max(row) + 5 for row in steps]
    plain = decide_floor([[*row, window] for row, window in zip(steps, windows)], Fraction(9, 10), 2)
    other = decide_floor(
        [[*(row[device] * unit for device in order), window * unit] for row, window in zip(steps, windows)],
        Fraction(9, 10),
        2,
    )
    assert _figures(plain) == _figures(other)


@settings(max_examples=100, deadline=None)
@given(steps=wild_steps | noisy_steps, limits=st.tuples(limits, limits), trusted=st.sampled_from([0, Fraction(1, 50)]))
def test_a_looser_limit_is_never_judged_worse(
    steps: list[list[int]], limits: tuple[Fraction, Fraction], trusted: Fraction
) -> None:
    strict, loose = sorted(limits)
    ranges = [decide_range(steps, limit, 2, trusted_to=Fraction(trusted)) for limit in (strict, loose)]
    assert ORDER[ranges[0].outcome] <= ORDER[ranges[1].outcome]
    rows = [[*row, max(row) + 5] for row in steps]
    floors = [decide_floor(rows, 1 - limit, 2) for limit in (strict, loose)]
    assert ORDER[floors[0].outcome] <= ORDER[floors[1].outcome]


@settings(max_examples=100, deadline=None)
@given(ratios=block_ratios, limits=st.tuples(limits, limits))
def test_a_looser_ratio_or_margin_is_never_judged_worse(
    ratios: list[Fraction], limits: tuple[Fraction, Fraction]
) -> None:
    strict, loose = sorted(limits)
    speeds = [decide_ratio(ratios, Fraction(7, 10) + 10 * limit) for limit in (strict, loose)]
    assert ORDER[speeds[0].outcome] <= ORDER[speeds[1].outcome]
    equals = [decide_equivalence(ratios, limit + Fraction(1, 1000)) for limit in (strict, loose)]
    assert ORDER[equals[0].outcome] <= ORDER[equals[1].outcome]


@settings(max_examples=100, deadline=None)
@given(steps=wild_steps | noisy_steps, limit=limits, alpha=st.sampled_from([0.05, 0.02, 0.01]))
def test_bounds_agree_with_the_outcome_and_a_smaller_budget_decides_no_more(
    steps: list[list[int]], limit: Fraction, alpha: float
) -> None:
    ratios = [Fraction(row[0], row[1]) for row in steps]
    _agree(decide_range(steps, limit, 2, alpha=alpha), decide_range(steps, limit, 2), limit, alpha)
    _agree(decide_ratio(ratios, 1 + limit, alpha=alpha), decide_ratio(ratios, 1 + limit), 1 + limit, alpha)


def _agree(decision: Decision, with_more: Decision, limit: Fraction, alpha: float) -> None:
    assert decision.alpha == alpha
    assert decision.lower <= decision.point <= decision.upper
    assert decision.outcome is not PASS or decision.upper <= limit
    assert decision.outcome is not FAIL or decision.lower > limit
    assert decision.lower <= with_more.lower
    assert decision.upper >= with_more.upper
    assert decision.outcome in {with_more.outcome, INCONCLUSIVE}
    assert decision.more_needed is None or (decision.more_needed > 0 and decision.outcome is INCONCLUSIVE)
