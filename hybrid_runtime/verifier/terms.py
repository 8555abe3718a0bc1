"""What holds for all claims of one judgement: the error a look may spend, and what the self-tests say of the clocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hybrid_runtime.verdict import Outcome, SelfCheck
from hybrid_runtime.verifier.statistics import ALPHA
from hybrid_runtime.verifier.trust import Blocker


class Terms(NamedTuple):
    """Given to every rule.

    Attributes:
        alpha: error level of this look.
        driver: why NVML forbids to believe the clocks, if it does.
        clock_resolves: the planted imbalances came out as planted on the clock that balance is judged by.
        balance: why the self-test forbids to judge times of compute, if it does.
        speed: why the self-test forbids to judge speed, if it does.
    """

    alpha: float = ALPHA
    driver: Blocker | None = None
    clock_resolves: bool = False
    balance: Blocker | None = None
    speed: Blocker | None = None


def terms_of(alpha: float, driver: Blocker | None, checks: Iterable[SelfCheck]) -> Terms:
    """The terms that follow from a run's self-tests."""
    found = {check.id: check for check in checks}
    planted = [check for name, check in found.items() if name.startswith("planted")]
    wrong = next((check for check in planted if check.outcome is Outcome.FAIL), None)
    aa = found.get("aa")
    return Terms(
        alpha,
        driver,
        clock_resolves=bool(planted) and all(check.outcome is Outcome.PASS for check in planted),
        balance=Blocker("planted_failed", f"self-test {wrong.id}: {wrong.detail}") if wrong else None,
        speed=Blocker("aa_failed", f"self-test aa: {aa.detail}") if aa and aa.outcome is Outcome.FAIL else None,
    )
