"""Equal work: losses and gradient norms."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_runtime.verdict import Outcome, SelfCheck
from hybrid_runtime.verifier.judge import judge
from hybrid_runtime.verifier.numerics import EARLY_STEPS, GRADIENT_NORM, LOSS, Pairs, Tolerance, numbers_apart
from tests.verifier.synthetic import MS, Synthetic, deployment, steady, write_run


def losses_apart(pairs: Pairs, dtype: str = "float32") -> str | None:
    return numbers_apart("loss", pairs, LOSS, dtype)


def test_losses_agree_closely_at_first_and_on_average_later() -> None:
    early = [("2.0", "2.0001")] * EARLY_STEPS
    assert losses_apart(early) is None
    assert "step 1: loss 2.0 against the baseline's 2.001" in str(losses_apart([*early[:1], ("2.0", "2.001")]))
    assert losses_apart([("2.0", "2.03")], "bfloat16") is None
    scattered = [("2.0", "2.1"), ("2.1", "2.0")] * 50  # rounding has grown: single steps differ, the average does not
    assert losses_apart([*early, *scattered]) is None
    assert "mean loss" in str(losses_apart([*early, *[("2.0", "2.1")] * 50]))
    assert "step 12" in str(losses_apart([*early, *[("2.0", "2.0")] * 2, ("nan", "nan")]))
    assert "no step in common" in str(losses_apart([]))


@pytest.mark.parametrize(("tolerance", "dtype"), [(LOSS, "float32"), (GRADIENT_NORM, "float32"), (LOSS, "bfloat16")])
def test_the_tolerance_is_that_of_the_dtype(tolerance: Tolerance, dtype: str) -> None:
    allowed = tolerance.early[dtype]
    assert numbers_apart("x", [("1.0", repr(1 + 0.9 * allowed))], tolerance, dtype) is None
    assert numbers_apart("x", [("1.0", repr(1 + 1.1 * allowed))], tolerance, dtype) is not None


def gate(folder: Path, baseline: Synthetic) -> SelfCheck:
    settings = deployment(baseline={"kind": "pp_only"})
    verdict = judge(write_run(folder, steady([MS] * 3), settings, baseline=baseline))
    return next(check for check in verdict.self_test if check.id == "numerics")


def test_the_gate_is_a_row_of_the_self_test(tmp_path: Path) -> None:
    same = gate(tmp_path / "same", steady([MS] * 3))
    assert (same.outcome, same.detail) == (Outcome.PASS, "124 common steps agree")
    other = gate(tmp_path / "other", steady([MS] * 3, grad_norm=1.6))
    assert (other.outcome, other.reason) == (Outcome.FAIL, "loads_differ")
    assert "gradient norm 1.5 against the baseline's 1.6" in other.detail
