"""The reference balances are reached; the searched utilisation is `scripts/bench plans`'s to show."""

from __future__ import annotations

import pytest

from benchmarks.plans import MODELS, Published, balance, main

CASES = [(model, *key) for model in MODELS for key in model.memory_imbalance]


@pytest.mark.parametrize(
    ("model", "pp_degree", "in_flight"), CASES, ids=lambda one: one.name if isinstance(one, Published) else str(one)
)
def test_the_reference_balances(model: Published, pp_degree: int, in_flight: int) -> None:
    found = balance(model, pp_degree, in_flight)
    assert found.compute_share_range_pp <= 0.02
    assert found.memory_imbalance_percent == pytest.approx(model.memory_imbalance[pp_degree, in_flight], abs=0.1)
    assert sum(found.rows) == (0 if model.shape.tie_embeddings else model.shape.vocab_size)


def test_the_worked_example_of_three_ranks() -> None:
    found = balance(MODELS[0], 3, 4)
    assert [(stage[0], stage[-1]) for stage in found.staged.names] == [
        ("embedding", "4.mlp"),
        ("5.attn", "9.mlp"),
        ("10.attn", "15.mlp"),
        ("16.attn", "21.mlp[0:2816]"),
        ("21.mlp[2816:14336]", "27.mlp[0:10624]"),
        ("27.mlp[10624:14336]", "head"),
    ]
    assert found.rows == (51776, 37568, 38912)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--only", "GPT-3-13B"]) == 0
    assert "GPT-3-13B 8  | 9" in capsys.readouterr().out
