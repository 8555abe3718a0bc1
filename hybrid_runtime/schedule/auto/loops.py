"""The search's inner loop, compiled: simulated annealing of the order of all ranks (Kirkpatrick et al. 1983).

One try moves one action by a few places within its rank and replays. What makes a try cheap: actions that started
before the first one moved keep their times, and a replay ends as soon as a rank has more work left than time.

All arrays are int64; times are ticks. Streams and `tables` are explained in `problem`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hybrid_runtime.schedule.auto.problem import (
    FIRST,
    FIRST_LAG,
    FREED,
    KEPT,
    NONE,
    SECOND,
    SECOND_LAG,
    TAIL,
    TEMPORARY,
    TIME,
    Ints,
)
from hybrid_runtime.schedule.compiled import jit

TOO_LATE = -1  # instead of a makespan
NEVER = 2**62  # after all times
ANY = -1  # instead of a number of bytes: any will do


class State(NamedTuple):
    """An order under annealing, and what is known about it.

    Attributes:
        tables, streams_of, limits, lengths: as in `Problem`.
        order: [rank, place], stream numbers; NONE behind the last.
        which: [rank, place], their microbatches.
        held: [rank, place], bytes held before the action there.
        peaks: [rank], most bytes held.
        ends: [stream, microbatch].
        trial: [stream, microbatch], ends of the order that is being tried; equal to `ends` between tries.
        counts, kept: [stream], scratch: microbatches with an end in `trial`, and those that keep theirs.
        ranks: [rank, (place, clock, work left)], scratch.
        random: [1], state of the random numbers.
    """

    tables: Ints
    streams_of: Ints
    limits: Ints
    lengths: Ints
    order: Ints
    which: Ints
    held: Ints
    peaks: Ints
    ends: Ints
    trial: Ints
    counts: Ints
    kept: Ints
    ranks: Ints
    random: Ints


@jit
def draw(random: Ints) -> float:
    """Next number in (0, 1): xorshift32 (Marsaglia 2003), the same with and without numba."""
    x = random[0]
    x ^= (x << 13) & 0xFFFFFFFF
    x ^= x >> 17
    x ^= (x << 5) & 0xFFFFFFFF
    random[0] = x
    return float(x / 4294967296.0)


@jit
def rewind(since: int, state: State) -> None:
    """Goes back to time `since`: actions that started before it stay, `ranks` and `counts` say where to go on."""
    tables, trial, num_microbatches = state.tables, state.trial, state.trial.shape[1]
    for rank in range(len(state.lengths)):
        place, clock, work = 0, 0, 0
        for stream in state.streams_of[rank]:
            if stream == NONE:
                break
            time = tables[stream, TIME]
            low, high = 0, num_microbatches
            while low < high:
                middle = (low + high) // 2
                if trial[stream, middle] - time < since:
                    low = middle + 1
                else:
                    high = middle
            state.counts[stream] = state.kept[stream] = low
            place += low
            work += (num_microbatches - low) * time
            if low > 0:
                clock = max(clock, trial[stream, low - 1])
        state.ranks[rank, 0], state.ranks[rank, 1], state.ranks[rank, 2] = place, clock, work


@jit
def run(allowed: int, state: State) -> int:
    """Replays all ranks to the end from where `rewind` put them, and gives the makespan.

    Gives TOO_LATE as soon as the makespan is sure to exceed `allowed`, or when no rank can go on.
    """
    tables, order, trial, counts, ranks = state.tables, state.order, state.trial, state.counts, state.ranks
    moved = True
    while moved:
        moved = False
        for rank in range(len(state.lengths)):
            place, clock, work = ranks[rank, 0], ranks[rank, 1], ranks[rank, 2]
            while place < state.lengths[rank]:
                stream = order[rank, place]
                microbatch = counts[stream]
                first, second = tables[stream, FIRST], tables[stream, SECOND]
                if first != NONE:
                    if counts[first] <= microbatch:
                        break
                    if second != NONE:
                        if counts[second] <= microbatch:
                            break
                        clock = max(clock, trial[second, microbatch] + tables[stream, SECOND_LAG])
                    clock = max(clock, trial[first, microbatch] + tables[stream, FIRST_LAG])
                if clock + max(work, tables[stream, TAIL]) > allowed:
                    return TOO_LATE
                clock += tables[stream, TIME]
                work -= tables[stream, TIME]
                trial[stream, microbatch] = clock
                counts[stream] = microbatch + 1
                place += 1
            if place > ranks[rank, 0]:
                moved = True
                ranks[rank, 0], ranks[rank, 1], ranks[rank, 2] = place, clock, work
    makespan = 0
    for rank in range(len(state.lengths)):
        if ranks[rank, 0] < state.lengths[rank]:
            return TOO_LATE
        makespan = max(makespan, ranks[rank, 1])
    return makespan


@jit
def move(rank: int, source: int, target: int, state: State) -> bool:
    """Moves one action of a rank, those between shift by one place; False, and nothing is moved, if it may not.

    It may not pass its own stream, nor what it waits for or what waits for it.
    """
    order, which, tables = state.order, state.which, state.tables
    stream, microbatch = order[rank, source], which[rank, source]
    step = 1 if target > source else -1
    for place in range(source + step, target + step, step):
        other = order[rank, place]
        if other == stream:
            return False
        if which[rank, place] == microbatch:
            before, after = (stream, other) if step > 0 else (other, stream)
            if tables[after, FIRST] == before or tables[after, SECOND] == before:
                return False
    for place in range(source, target, step):
        order[rank, place], which[rank, place] = order[rank, place + step], which[rank, place + step]
    order[rank, target], which[rank, target] = stream, microbatch
    return True


@jit
def hold(rank: int, low: int, high: int, state: State) -> int:
    """Renews `held` for a rank's places low..high, and gives the most bytes held there."""
    live, most = state.held[rank, low], 0
    for place in range(low, high + 1):
        state.held[rank, place] = live
        stream = state.order[rank, place]
        live += state.tables[stream, KEPT]
        most = max(most, live + state.tables[stream, TEMPORARY])
        live -= state.tables[stream, FREED]
    return most


@jit
def peak_of(rank: int, state: State) -> int:
    """Most bytes that a rank holds."""
    most = 0
    for place in range(state.lengths[rank]):
        stream = state.order[rank, place]
        most = max(most, state.held[rank, place] + state.tables[stream, KEPT] + state.tables[stream, TEMPORARY])
    return most


@jit
def unevenness(rank: int, peak: int, state: State) -> int:
    """Sum over ranks of the bytes by which their peaks are below the highest, if `rank` had this peak."""
    highest, total = peak, peak
    for other in range(len(state.peaks)):
        if other != rank:
            highest = max(highest, state.peaks[other])
            total += state.peaks[other]
    return highest * len(state.peaks) - total


@jit
def attempt(rank: int, source: int, target: int, allowed: int, allowed_uneven: int, state: State) -> int:
    """Tries one move. Gives the new makespan, or TOO_LATE, and nothing has changed.

    Args:
        allowed: the makespan may not exceed this.
        allowed_uneven: nor the unevenness of the peaks this; ANY asks for the limits only, and leaves `peaks` as it is.
    """
    low, high = min(source, target), max(source, target)
    stream = state.order[rank, low]
    since = state.ends[stream, state.which[rank, low]] - state.tables[stream, TIME]
    if not move(rank, source, target, state):
        return TOO_LATE
    found, peak = TOO_LATE, hold(rank, low, high, state)
    fits = peak <= state.limits[rank]
    if fits and allowed_uneven != ANY:
        peak = peak_of(rank, state)
        fits = unevenness(rank, peak, state) <= allowed_uneven
    if fits:
        rewind(since, state)
        found = run(allowed, state)
        here, there = (state.trial, state.ends) if found == TOO_LATE else (state.ends, state.trial)
        for stream in range(len(state.counts)):
            for microbatch in range(state.kept[stream], state.counts[stream]):
                here[stream, microbatch] = there[stream, microbatch]
    if found == TOO_LATE:
        move(rank, target, source, state)
        hold(rank, low, high, state)
    elif allowed_uneven != ANY:
        state.peaks[rank] = peak
    return found


@jit
def choose(reach: int, state: State) -> tuple[int, int, int]:
    """A random rank, place and place to move to; the last may lie outside the rank's list."""
    rank = int(draw(state.random) * len(state.lengths))
    source = int(draw(state.random) * state.lengths[rank])
    step = 1 + int(draw(state.random) * reach)
    return rank, source, source + step if draw(state.random) < 0.5 else source - step


@jit
def keep(state: State, best: Ints) -> None:
    """Copies the order."""
    for rank in range(len(state.lengths)):
        for place in range(state.lengths[rank]):
            best[rank, place] = state.order[rank, place]


@jit
def anneal(
    tries: int, hot: float, cold: float, reach: int, goal: int, evenly: bool, least: int, state: State, best: Ints
) -> int:
    """Anneals the makespan or, at no longer makespan, the unevenness of the peaks.

    Args:
        tries: moves tried; the temperature goes linearly from `hot` to `cold` over them, in ticks or bytes.
        reach: places that an action moves at most.
        goal: stops at this makespan or unevenness.
        evenly: unevenness is what counts.
        least: of `best`, which becomes the best order seen.

    Returns:
        The makespan or unevenness of `best`.
    """
    makespan = 0
    for stream in range(len(state.ends)):
        makespan = max(makespan, state.ends[stream, -1])
    rank = len(state.peaks) - 1
    value = unevenness(rank, state.peaks[rank], state) if evenly else makespan
    for number in range(tries):
        if least <= goal:
            break
        rank, source, target = choose(reach, state)
        temperature = hot + (cold - hot) * number / tries
        patience = int(-temperature * math.log(draw(state.random)))
        if target < 0 or target >= state.lengths[rank]:
            continue
        allowed, allowed_uneven = (makespan, value + patience) if evenly else (makespan + patience, ANY)
        found = attempt(rank, source, target, allowed, allowed_uneven, state)
        if found != TOO_LATE:
            makespan = found
            value = unevenness(rank, state.peaks[rank], state) if evenly else found
            if value < least:
                least = value
                keep(state, best)
    return least


@jit
def lay_out(allowed: int, state: State) -> int:
    """Fills in everything that follows from `order`. Gives the makespan, or TOO_LATE if it cannot run or hold."""
    for stream in range(len(state.counts)):
        state.counts[stream] = state.kept[stream] = 0
    for rank in range(len(state.lengths)):
        live, work = 0, 0
        for place in range(state.lengths[rank]):
            stream = state.order[rank, place]
            state.which[rank, place] = state.kept[stream]
            state.kept[stream] += 1
            state.held[rank, place] = live
            live += state.tables[stream, KEPT] - state.tables[stream, FREED]
            work += state.tables[stream, TIME]
        state.ranks[rank, 0], state.ranks[rank, 1], state.ranks[rank, 2] = 0, 0, work
        state.peaks[rank] = peak_of(rank, state)
        if state.peaks[rank] > state.limits[rank]:
            return TOO_LATE
    makespan = run(allowed, state)
    for stream in range(len(state.counts)):
        for microbatch in range(state.ends.shape[1]):
            state.ends[stream, microbatch] = state.trial[stream, microbatch]
    return makespan
