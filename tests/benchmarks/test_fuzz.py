"""A small fuzz of deployments and run folders, and proof that the fuzz finds what it looks for."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_mutations import damage_folder, damaged_bytes, damaged_values
from tests.verifier.runs import judged_runs

SEED = 20260101


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return judged_runs(tmp_path_factory.mktemp("bases"))


def test_damaged_deployments_end_as_documented() -> None:
    ends = [fuzz.deployment_case(SEED, number) for number in range(250)]
    assert [done.failure for done in ends if done.failure] == []
    assert {done.code for done in ends} >= {0, 1, 2}


def test_damaged_run_folders_end_as_documented(bases: list[Path]) -> None:
    ends = [fuzz.run_case(SEED, bases, number) for number in range(120)]
    assert [done.failure for done in ends if done.failure] == []
    assert {done.code for done in ends} >= {3, 4}


def _raise_error() -> None:
    raise KeyError("tp")


def _exit_with(code: object, words: str = "") -> Callable[[], None]:
    def end() -> None:
        print(words, end="")
        raise SystemExit(code)

    return end


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        (_raise_error, "KeyError: 'tp'"),
        (lambda: None, "returned instead of exiting"),
        (_exit_with(7), "exit code 7 is not documented"),
        (_exit_with(None), "exit code None is not documented"),
        (_exit_with(0), "exit code 0 without a word"),
        (_exit_with(1, "Traceback (most recent call last)"), "instead of a sentence"),
    ],
)
def test_a_bad_end_is_found_and_made_small(ends: Callable[[], None], found: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(fuzz.cli, "main", ends)
    failure = fuzz.deployment_case(SEED, 3).failure
    assert failure is not None
    assert found in failure.what
    assert failure.case == "deployments:3"
    assert len(failure.damages) == 2, "the file, and one damage that suffices"


def test_a_change_that_recheck_overlooks_is_found(bases: list[Path], monkeypatch: Any) -> None:
    monkeypatch.setattr(fuzz.cli, "main", _exit_with(0, "PASS"))
    failures = [done.failure for number in range(20) if (done := fuzz.run_case(SEED, bases, number)).failure]
    assert failures
    assert all("was changed after it was judged, and ended with exit code 0" in str(failure) for failure in failures)


def test_a_case_that_hangs_is_found(monkeypatch: Any) -> None:
    def hang() -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "MOST_S", 1)
    monkeypatch.setattr(fuzz.cli, "main", hang)
    assert fuzz.call([])[1] is not None
    assert "longer than 1 s" in str(fuzz.call([])[1])


def test_the_command_prints_seed_counts_and_how_to_see_a_failure_again(capsys: Any, monkeypatch: Any) -> None:
    assert fuzz.main(["--seed", "4", "--deployments", "4", "--runs", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("seed 4\n")
    assert "deployments: 4 cases in" in out
    assert "runs: 2 cases in" in out
    monkeypatch.setattr(fuzz.cli, "main", _raise_error)
    assert fuzz.main(["--seed", "4", "--only", "deployments:2"]) == 1
    assert "again: scripts/bench fuzz --seed 4 --only deployments:2" in capsys.readouterr().out


def test_the_same_seed_is_the_same_damage(bases: list[Path], tmp_path: Path) -> None:
    assert damaged_bytes(b"abc\ndef\n", random.Random(1)) == damaged_bytes(b"abc\ndef\n", random.Random(1))
    assert damaged_values({"a": [1, {"b": "x"}]}, random.Random(9)) == damaged_values(
        {"a": [1, {"b": "x"}]}, random.Random(9)
    )
    said = []
    for name in ("one", "two"):
        folder = Path(shutil.copytree(bases[1], tmp_path / name))
        said.append([damage_folder(folder, random.Random(seed)) for seed in range(5)])
    assert said[0] == said[1]
