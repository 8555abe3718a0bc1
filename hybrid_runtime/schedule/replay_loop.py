"""The replay's two loops. They run as they stand on Python integers of any size, and compiled on int64 arrays."""

from __future__ import annotations

from typing import Any

Integers = Any  # list, array or numpy array of integers

NOT_YET = -1  # the end of an operation that has not run


def run_rows(
    row_starts: Integers,
    classes: Integers,
    waits: Integers,
    wait_starts: Integers,
    time_of: Integers,
    lag_of: Integers,
    starts: Integers,
    ends: Integers,
    places: Integers,
) -> None:
    """Runs every row in its order, each operation as early as its row and what it waits for allow.

    Args:
        row_starts, classes, waits, wait_starts: as in `Rows`.
        time_of, lag_of: per class, how long an operation takes and how much later its takers may start.
        starts, ends: filled in; `ends` comes full of NOT_YET, which stays where an operation can never run.
        places: per row, the next operation; comes as `row_starts` without its last entry.
    """
    moved = True
    while moved:
        moved = False
        for row in range(len(places)):
            place = places[row]
            clock = ends[place - 1] if place > row_starts[row] else 0
            while place < row_starts[row + 1]:
                ready = clock
                missing = False
                for entry in range(wait_starts[place], wait_starts[place + 1]):
                    other = waits[entry]
                    if other < 0 or ends[other] == NOT_YET:
                        missing = True
                        break
                    ready = max(ready, ends[other] + lag_of[classes[other]])
                if missing:
                    break
                clock = ready + time_of[classes[place]]
                starts[place] = ready
                ends[place] = clock
                place += 1
            if place > places[row]:
                places[row] = place
                moved = True


def peak_rows(
    row_starts: Integers,
    classes: Integers,
    kept_of: Integers,
    freed_of: Integers,
    temporary_of: Integers,
    peaks: Integers,
    at: Integers,
) -> None:
    """Largest number of bytes held by every row, and the operation at which it is first reached.

    Args:
        kept_of, freed_of, temporary_of: per class; see `ActionBytes`.
        peaks, at: per row of interest, filled in; `peaks` comes full of 0, `at` of -1.
    """
    for row in range(len(peaks)):
        held = 0
        for place in range(row_starts[row], row_starts[row + 1]):
            held += kept_of[classes[place]]
            during = held + temporary_of[classes[place]]
            if during > peaks[row]:
                peaks[row] = during
                at[row] = place
            held -= freed_of[classes[place]]
