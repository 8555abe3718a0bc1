"""The replay's loops as machine code. Imported where lists are long: it imports numba."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from hybrid_runtime.schedule import replay_loop
from hybrid_runtime.schedule.compiled import jit
from hybrid_runtime.schedule.rows import Rows

_run_rows = jit(replay_loop.run_rows)


def run_rows_int64(rows: Rows, times: list[int], lags: list[int]) -> tuple[list[int], list[int]]:
    """Starts and ends of all operations, in ticks; sums of times must fit int64."""
    row_starts = _view(rows.row_starts)
    starts = np.zeros(len(rows.actions), np.int64)
    ends = np.full(len(rows.actions), replay_loop.NOT_YET, np.int64)
    _run_rows(
        row_starts,
        _view(rows.classes),
        _view(rows.waits),
        _view(rows.wait_starts),
        np.array(times, np.int64),
        np.array(lags, np.int64),
        starts,
        ends,
        row_starts[:-1].copy(),
    )
    return starts.tolist(), ends.tolist()


def _view(numbers: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(numbers, np.int64)
