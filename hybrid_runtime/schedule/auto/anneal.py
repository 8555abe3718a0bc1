"""Annealing from several starts side by side, each on a core of its own, in rounds of falling temperature.

start A | hot ... cold | hot ... cold |      every round starts from the best order so far
start B | hot ... cold | hot ... cold |      chains are compared only when all have done a slice: a seed is a result
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hybrid_runtime.schedule.auto import loops
from hybrid_runtime.schedule.auto.problem import NONE, Ints, Problem
from hybrid_runtime.schedule.compiled import COMPILED

# First temperatures of the rounds, in parts of the makespan: cool rounds polish, warm ones leave a dead end.
HEATS = (1e-4, 3e-4, 1e-4, 2e-4, 5e-5, 3e-4, 1e-4, 5e-5)
EVEN_HEAT = 0.05  # of evening out, in parts of the highest peak
TRIES_PER_ACTION = 250  # in a round
REACH = 16  # places that an action moves at most
SLICE = 20_000 if COMPILED else 50  # tries between two looks at the clock: some 30 ms, or half a second


class Chain:
    """An order under annealing.

    Attributes:
        best: [rank, place], the best order so far.
        makespan: its makespan, in ticks.
    """

    def __init__(self, problem: Problem, order: Ints, seed: int) -> None:
        """Starts from an order that runs within the limits."""
        self._state = _state(problem, order, seed)
        self.best = order.copy()
        self.makespan = self._restart()
        assert self.makespan != loops.TOO_LATE, "the start does not run within the limits"
        self.tries_per_round = TRIES_PER_ACTION * int(problem.lengths.sum())

    @property
    def peaks(self) -> list[int]:
        """Most bytes per rank of the best order; to be asked between rounds."""
        self._restart()
        peaks: list[int] = self._state.peaks.tolist()
        return peaks

    def compile(self) -> None:
        """Compiles the loops, or loads them from the cache, so that nobody's time budget pays for it."""
        loops.anneal(0, 0.0, 0.0, REACH, 0, False, self.makespan, self._state, self.best)

    def shorten(self, heat: float, goal: int) -> Iterator[float]:
        """One round on the makespan; yields what part of it is done, slice by slice."""
        hot = heat * self._restart()
        for first, last in _slices(self.tries_per_round):
            begin, end = (hot * (1 - share) for share in (first / self.tries_per_round, last / self.tries_per_round))
            self.makespan = loops.anneal(
                last - first, begin, end, REACH, goal, False, self.makespan, self._state, self.best
            )
            yield last / self.tries_per_round

    def even_out(self) -> Iterator[float]:
        """One round on the unevenness of the peaks at no longer makespan; yields as `shorten`."""
        peaks = self.peaks
        hot, least = EVEN_HEAT * max(peaks), len(peaks) * max(peaks) - sum(peaks)
        for first, last in _slices(self.tries_per_round):
            begin, end = (hot * (1 - share) for share in (first / self.tries_per_round, last / self.tries_per_round))
            least = loops.anneal(last - first, begin, end, REACH, 0, True, least, self._state, self.best)
            yield last / self.tries_per_round
        self.makespan = self._restart()

    def _restart(self) -> int:
        """Puts the best order into the state again; its makespan."""
        self._state.order[:] = self.best
        return int(loops.lay_out(loops.NEVER, self._state))


def shorten_all(chains: Sequence[Chain], goal: int) -> Iterator[float]:
    """Anneals all chains until one reaches the goal or all rounds are done; yields what part is done, by slices."""
    with ThreadPoolExecutor(len(chains)) as pool:
        for number, heat in enumerate(HEATS):
            rounds = [chain.shorten(heat, goal) for chain in chains]
            for _ in _slices(chains[0].tries_per_round):
                done = list(pool.map(next, rounds))
                yield (number + done[0]) / len(HEATS)
                if min(chain.makespan for chain in chains) <= goal:
                    return


def _slices(tries: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + SLICE, tries)) for first in range(0, tries, SLICE))


def _state(problem: Problem, order: Ints, seed: int) -> loops.State:
    num_streams, num_ranks = len(problem.tables), len(problem.limits)
    ends = np.zeros((num_streams, problem.num_microbatches), np.int64)
    return loops.State(
        tables=problem.tables,
        streams_of=problem.streams_of,
        limits=problem.limits,
        lengths=problem.lengths,
        order=order.copy(),
        which=np.full(order.shape, NONE, np.int64),
        held=np.zeros(order.shape, np.int64),
        peaks=np.zeros(num_ranks, np.int64),
        ends=ends,
        trial=ends.copy(),
        counts=np.zeros(num_streams, np.int64),
        kept=np.zeros(num_streams, np.int64),
        ranks=np.zeros((num_ranks, 3), np.int64),
        random=np.array([1 + (seed * 2654435761 + 88172645) % (2**32 - 1)], np.int64),
    )
