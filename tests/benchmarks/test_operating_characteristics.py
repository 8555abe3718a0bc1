"""The simulated operating characteristics: goals are judged by whole intervals, and a quick run counts every rule."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.operating_characteristics import Goal, cases, count, main, rate_interval
from benchmarks.simulated import Cell, correlated, outcomes


def test_quick_run_misses_no_goal_and_saves_every_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--save", "--results", str(tmp_path / "results")])
    (file,) = (tmp_path / "results").glob("operating_characteristics-*.json")
    cells = json.loads(file.read_text())["cells"]
    assert {name.partition(" ")[0] for name in cells} == {"range", "floor", "ratio", "equivalence", "quantile"}
    assert all(cell["state"] in {"met", "open"} for cell in cells.values())  # 200 runs cannot show 1 %
    assert all(sum(cell["endings"].values()) == cell["runs"] >= 200 for cell in cells.values())
    assert "open" in capsys.readouterr().out


def test_a_goal_is_met_or_missed_only_where_its_whole_interval_says_so() -> None:
    goal = Goal("PASS", "<=", 5)
    assert [goal.state(Counter(PASS=passes), 1000) for passes in (20, 48, 90)] == ["met", "open", "missed"]
    goal = Goal("FAIL", ">=", 95)
    assert [goal.state(Counter(FAIL=fails), 1000) for fails in (990, 950, 900)] == ["met", "open", "missed"]
    assert rate_interval(0, 100) == (0.0, pytest.approx(0.0362, abs=1e-4))  # textbook values
    assert rate_interval(100, 100) == (pytest.approx(0.9638, abs=1e-4), 1.0)


def test_a_rule_that_errs_is_shown_as_missing_its_goal() -> None:
    """Noise that is not what the goal was made for: a truth beside the limit passes far more often than 5 %."""
    found = outcomes(Cell("range", 0.9, (200,)), 100, [0])
    assert Goal("PASS", "<=", 5).state(found, 100) == "missed"


def test_noise_has_the_correlation_and_the_truth_that_it_is_asked_for() -> None:
    noise = correlated(np.random.default_rng(0), (200, 100, 2), 0.5)
    assert np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] == pytest.approx(0.5, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    table = np.array(list(Cell("range", 1.0, (400,), 0.01, 3).samples(np.random.default_rng(1), 20))).sum(axis=(0, 1))
    assert (table[2] - table[0]) / table.sum() == pytest.approx(0.01, abs=1e-3)


def test_counts_do_not_depend_on_the_number_of_cores() -> None:
    chosen = {name: case for name, case in cases().items() if name == "ratio wobble=0 at the limit, 12 pairs"}
    assert count(chosen, 60, 3, cores=1) == count(chosen, 60, 3, cores=2)


def test_an_unknown_cell_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--only", "nothing"])
    assert caught.value.code == 2
    assert "no cell is named like 'nothing'" in capsys.readouterr().err
