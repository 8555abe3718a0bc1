"""Progress lines: written, read back while they are being written, and small for any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid_runtime.report.progress import EXTREMES, MAX_LOADS, ROTATING, ProgressTail, loads_to_tell
from tests.report.running import line, load


def test_a_tail_takes_complete_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    tail = ProgressTail(path)
    assert tail.read_new() == []
    first, second = line(1).to_line(), line(2, loss=None).to_line()
    path.write_text(first + second[:20])
    assert tail.read_new() == [line(1)]
    assert tail.read_new() == []
    path.write_text(first + second + "not a record\n")
    assert tail.read_new() == [line(2, loss=None)]
    assert tail.read_new() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_loss_survives_the_file(tmp_path: Path, value: float) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text(line(1, loss=value).to_line())
    assert [str(one.loss) for one in ProgressTail(path).read_new()] == [str(value)]


def test_a_line_without_ranks_from_an_older_version_is_read_and_newer_fields_are_left_aside(tmp_path: Path) -> None:
    old = json.loads(line(1).to_line())
    for name in ("ranks", "left_out", "grad_norm"):
        del old[name]
    path = tmp_path / "progress.jsonl"
    path.write_text(json.dumps(old) + "\n" + json.dumps(old | {"step": 2, "colour": "green"}) + "\n")
    assert ProgressTail(path).read_new() == [line(1), line(2)]


@pytest.mark.parametrize("side", ["", "../x", "[red]", "A", "a" * 41, "a/b", "a\n"])
def test_a_side_names_a_folder_and_a_bar_and_nothing_else(tmp_path: Path, side: str) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text(json.dumps(json.loads(line(1).to_line()) | {"side": side}) + "\n" + line(2).to_line())
    assert ProgressTail(path).read_new() == [line(2)]
    assert line(1, side="baseline tp_only").side == "baseline tp_only"


def test_ranks_survive_the_file(tmp_path: Path) -> None:
    ranks = (load(0), load(1, busy_percent=None, wait_percent=None, memory_bytes=None))
    path = tmp_path / "progress.jsonl"
    path.write_text(line(1, ranks=ranks, left_out=3).to_line())
    (read,) = ProgressTail(path).read_new()
    assert (read.ranks, read.left_out) == (ranks, 3)


def test_few_ranks_are_all_told_and_many_by_their_extremes_and_in_turn() -> None:
    assert loads_to_tell([3.0, 1.0, 2.0], turn=5) == [0, 1, 2]
    assert loads_to_tell([0.0] * MAX_LOADS, turn=5) == list(range(MAX_LOADS))
    busy = [float((rank * 617) % 1000) for rank in range(1000)]
    heard_of: set[int] = set()
    for turn in range(-(-1000 // ROTATING)):
        told = loads_to_tell(busy, turn)
        assert len(told) <= MAX_LOADS
        assert told == sorted(set(told))
        order = sorted(range(1000), key=busy.__getitem__)
        assert {*order[:EXTREMES], *order[-EXTREMES:]} <= set(told)
        heard_of |= set(told)
    assert heard_of == set(range(1000))


def test_a_line_stays_small_for_any_number_of_ranks() -> None:
    ranks = tuple(load(65535 - k, busy_percent=99.99, memory_bytes=85_899_345_920) for k in range(MAX_LOADS))
    assert len(line(123456, ranks=ranks, left_out=65536 - MAX_LOADS).to_line()) < 4096


def test_a_step_without_figures_keeps_those_known_before() -> None:
    bare = load(3, busy_percent=None, wait_percent=None, tokens_per_s=7.0)
    assert bare.known_since(None) == bare
    assert bare.known_since(load(3, busy_percent=50.0)) == load(3, busy_percent=50.0, tokens_per_s=7.0)
    assert load(3, busy_percent=0.0).known_since(load(3, busy_percent=50.0)).busy_percent == 0.0
