"""Two kills of a whole job, and proof that the bench sees what it looks for."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import kills
from benchmarks.started_jobs import Torchrun, kill
from tests.commands import is_alive


@pytest.mark.ranks
def test_two_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "MOST_STEPS_S", 0.5)
    assert kills.main(["--kills", "2", "--seed", "1", "--save", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "2 kills" in said
    assert "0 problems" in said
    (file,) = tmp_path.glob("kills-*.json")
    rounds = json.loads(file.read_text())["rounds"]
    assert [row["resumed"] for row in rounds] == [0, rounds[0]["newest"]]
    assert {type(row["saving"]) for row in rounds} == {
        bool
    }  # whether the aimed instant was met is the machine's affair


def test_what_torchrun_starts_dies_with_it(tmp_path: Path) -> None:
    """Only that: the rounds are the same."""
    job = Torchrun(["nothing.json"], 1, tmp_path / "log.txt")
    pids = job.pids()
    kill(pids)
    job.wait()
    assert not job.runs()
    assert not any(is_alive(pid) for pid in pids)


def test_other_losses_and_another_beginning_are_seen() -> None:
    known = {1: "5.0", 2: "4.0"}
    assert kills._compare(1, kills.Round(1, {2: "4.0", 3: "3.0"}, saving=False), 1, known) == []
    assert known[3] == "3.0"
    (other,) = kills._compare(2, kills.Round(2, {3: "3.1"}, saving=False), 2, known)
    assert "step 3 has another loss" in other
    (begun,) = kills._compare(3, kills.Round(1, {}, saving=False), 2, known)
    assert "went on from step 1, and step 2 was whole" in begun


def test_a_flip_that_is_not_found_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "file").write_text("content")
    monkeypatch.setattr(kills, "check_whole", lambda folder: None)
    missed = kills._flip(tmp_path / "checkpoint", tmp_path / "copy", random.Random(1))
    assert missed is not None
    assert "was read as good" in missed
