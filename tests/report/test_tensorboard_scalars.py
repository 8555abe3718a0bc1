"""Event files read back with TensorBoard's own reader."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.report.roster import Roster
from hybrid_runtime.report.tensorboard_scalars import TensorBoardScalars
from hybrid_runtime.run_folder import RunFolder
from tests.report.running import line, load


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, value)."""
    module: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in sorted(events.Tags()["scalars"])
    }


def test_every_figure_of_every_step_and_side_is_there(tmp_path: Path) -> None:
    board, roster = TensorBoardScalars(tmp_path / "new/run"), Roster(RunFolder(tmp_path))
    for step in range(1, 41):
        held_out = 6 / step if step % 20 == 0 else None
        ranks = (load(0), load(11, busy_percent=None))
        board.show(line(step, loss=5 / step, grad_norm=1.5, ranks=ranks, validation_loss=held_out), roster)
    board.show(line(1, side="resumed", trained_before=40), roster)
    board.show(line(1, side="baseline", loss=math.nan, ranks=(load(0, wait_percent=None, memory_bytes=None),)), roster)
    board.close("finished")
    candidate, baseline = (read_back(tmp_path / "new/run" / side) for side in ("candidate", "baseline"))
    ranked = ["busy_share/rank0", "memory_bytes/rank0", "memory_bytes/rank11", "wait_share/rank0", "wait_share/rank11"]
    of_run = ["run/grad_norm", "run/loss", "run/step_time_s", "run/tokens_per_s", "run/validation_loss"]
    assert list(candidate) == sorted([*ranked, *of_run])
    assert candidate["run/validation_loss"] == [(20, pytest.approx(0.3)), (40, pytest.approx(0.15))]
    assert candidate["run/loss"] == [(step, pytest.approx(5 / step)) for step in range(1, 41)]
    assert read_back(tmp_path / "new/run/resumed")["run/step_time_s"][0][0] == 41
    assert candidate["busy_share/rank0"][0] == (1, 0.5)
    assert candidate["memory_bytes/rank11"][39] == (40, 3_565_158)
    assert set(baseline) == {"busy_share/rank0", "run/loss", "run/step_time_s", "run/tokens_per_s"}
    assert math.isnan(baseline["run/loss"][0][1])


def test_what_was_flushed_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    now_s = [1e9]
    board, roster = TensorBoardScalars(tmp_path, clock=lambda: now_s[0]), Roster(RunFolder(tmp_path))
    board.show(line(1), roster)
    board.flush()
    board.show(line(2), roster)
    board.flush()  # a moment later: kept back
    assert read_back(tmp_path / "candidate")["run/loss"] == [(1, pytest.approx(2.5126))]
    now_s[0] += 2
    board.flush()
    assert len(read_back(tmp_path / "candidate")["run/loss"]) == 2
    board.close("failed")
