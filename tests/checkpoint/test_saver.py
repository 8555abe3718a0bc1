"""Writing beside the steps: what a crash at any instant leaves, and how a full disk is told."""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from hybrid_runtime.checkpoint import folders, rank_file
from hybrid_runtime.checkpoint.manifest import Manifest
from hybrid_runtime.checkpoint.reader import check_whole, restore
from hybrid_runtime.checkpoint.saver import Saver
from hybrid_runtime.checkpoint.training_state import TrainingState
from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.mesh import Place
from hybrid_runtime.tensor_parallel.random_state import RandomStates
from tests.ranks import forking


def describe(step: int) -> Manifest:
    return Manifest(
        step=step,
        training={},
        deployment_fingerprint="",
        plan_fingerprint="",
        mesh=(1, 1, 1),
        versions={},
        written_utc="",
    )


def saver_of(folder: Path, unit: nn.Linear, keep: int = 2) -> tuple[Saver, TrainingState]:
    """One rank without an optimizer."""
    state = TrainingState({"unit": unit}, [], None, RandomStates(1, Axis()), Place(0, 0, 0, 0))
    return Saver(folder, 0, 1, state, set(state.boxes), describe, keep=keep, pinned=False), state


def test_what_is_written_is_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    unit = nn.Linear(300, 300)
    saver, state = saver_of(tmp_path, unit)
    for step in (1, 2, 3):
        nn.init.constant_(unit.weight, step)
        saver.save(step)
        nn.init.constant_(unit.weight, -1)  # the next step goes on at once
    assert saver.written_step >= 2, "the next one waits for the one before"
    saver.wait()
    assert folders.whole(tmp_path) == [], "not before every rank has said that its file is on the disk"
    saver.make_whole(3)
    saver.wait()
    assert [folders.step_of(path) for path in folders.whole(tmp_path)] == [2, 3]
    assert (tmp_path / "latest").read_text() == "step-00000003\n"
    newest = folders.whole(tmp_path)[-1]
    restore(newest, check_whole(newest), state.to_restore(random=True))
    assert unit.weight.eq(3).all()


def test_a_full_disk_is_one_sentence_and_the_one_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, _ = saver_of(tmp_path, nn.Linear(3, 3))
    saver.save(1)
    saver.wait()
    saver.make_whole(1)
    saver.wait()

    def full(number: int, content: memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rank_file, "_write_all", full)
    saver.save(2)
    with pytest.raises(
        EnvironmentProblem, match=r"cannot be written into .* \(No space left on device\); earlier ones stay whole"
    ):
        saver.wait()
    assert saver.written_step == 1
    with pytest.raises(EnvironmentProblem, match="No space left"):
        saver.make_whole(2)
    assert [folders.step_of(path) for path in map(Path, folders.whole(tmp_path)) if check_whole(path)] == [1]


def save_forever(folder: str, told: str) -> None:
    """Goes on from what is whole, and says what it has heard to be whole."""
    torch.set_num_threads(1)
    unit = nn.Linear(256, 256)
    found = folders.whole(Path(folder))
    step = folders.step_of(found[-1]) if found else 0
    folders.clear_partial(Path(folder))
    saver, _ = saver_of(Path(folder), unit)
    with open(told, "ab", buffering=0) as file:
        while True:
            step += 1
            nn.init.constant_(unit.weight, step)
            saver.save(step)
            saver.wait()
            saver.make_whole(step)
            saver.wait()
            file.write(f"{step}\n".encode())


def test_a_kill_at_any_instant_leaves_the_one_before_whole(tmp_path: Path) -> None:
    context = forking()
    chance, told, before = random.Random(3), tmp_path / "told", 0
    told.touch()
    for _ in range(12):
        process = context.Process(target=save_forever, args=(str(tmp_path / "checkpoints"), str(told)))
        process.start()
        until_s, said = time.monotonic() + 60, told.stat().st_size
        while told.stat().st_size == said and time.monotonic() < until_s:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        whole = folders.whole(tmp_path / "checkpoints")
        for path in whole:
            manifest = check_whole(path)
            assert manifest.step == folders.step_of(path)
        newest, last_said = folders.step_of(whole[-1]), int(told.read_text().split()[-1])
        assert newest in (last_said, last_said + 1)
        assert newest > before
        before = newest
    assert len(whole) in (2, 3), "kept by count, but for what a kill left of the removal"
