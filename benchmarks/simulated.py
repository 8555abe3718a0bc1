"""Noise of known truth, put through the real decision code: what `operating_characteristics` counts. No torch here.

Times are integers in ns around means of 0.1 s. Correlated noise is a first-order autoregression from row to row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decide import decide_floor, decide_range
from hybrid_runtime.verifier.decide_quantile import decide_quantile
from hybrid_runtime.verifier.decide_ratio import decide_equivalence, decide_ratio
from hybrid_runtime.verifier.decision import Decision
from hybrid_runtime.verifier.statistics import ALPHA

Rule = Literal["range", "floor", "ratio", "equivalence", "quantile"]
PAIRED = frozenset({"ratio", "equivalence"})
Table = npt.NDArray[np.float64]

ONE_PP, NINE_TENTHS, SEVEN_TENTHS = Fraction(1, 100), Fraction(9, 10), Fraction(7, 10)
MEAN_NS = 10**8
BLOCK_STEPS = 10


@dataclass(frozen=True)
class Cell:
    """One situation, judged at one or several looks that share the error budget.

    Attributes:
        truth: the true figure: pp for a range (limit 1), % for a floor (limit 90), the ratio as a percentage of its
            limit for a ratio, the slowdown in % for an equivalence (margin 1); for a quantile, of lognormal latencies,
            whose steps (rounds) differ by `cv` from each other, the quantile of the limit in %: 99.6 is a limit that
            0.4 % of requests exceed, for the p99.
        cv: noise of one row (a step), as a fraction; of one step in a block for ratios.
        correlation: from row to row; from step to step over both sides for ratios, unless `between_pairs`.
        looks: rows (steps, or block pairs) at each look; rows longer than a batch give fewer batches.
        batch_steps: what the rule is told to average at least.
        drift: the truth moves by this much, in its unit, from the first row to the last.
        times: so many times the usual number of runs: where a rate lies near its goal, or runs are quick.
    """

    rule: Rule
    truth: float
    looks: tuple[int, ...]
    cv: float = 0.01
    devices: int = 3
    correlation: float = 0.0
    batch_steps: int = 1
    between_pairs: bool = False
    drift: float = 0.0
    times: int = 1

    def decide(self, sample: Sequence[Sequence[int]], alpha: float) -> Decision:
        """The rule under test on the rows of one look."""
        if self.rule == "range":
            return decide_range(sample, ONE_PP, self.batch_steps, alpha=alpha)
        if self.rule == "floor":
            return decide_floor(sample, NINE_TENTHS, self.batch_steps, alpha=alpha)
        if self.rule == "quantile":
            return self._quantile(sample, alpha)
        ratios = [Fraction(candidate, baseline) for candidate, baseline in sample]
        if self.rule == "ratio":
            return decide_ratio(ratios, SEVEN_TENTHS, alpha=alpha)
        return decide_equivalence(ratios, ONE_PP, alpha=alpha)

    def _quantile(self, sample: Sequence[Sequence[int]], alpha: float) -> Decision:
        part = Fraction(int(self.truth), 100)
        steps = [[Fraction(latency) for latency in row] for row in sample]
        decision = decide_quantile(steps, part, Fraction(MEAN_NS), self.batch_steps, alpha=alpha)
        assert decision is not None, "too few requests for the quantile"
        return decision

    def samples(self, chance: np.random.Generator, runs: int) -> Iterator[list[list[int]]]:
        """`runs` times the rows of the last look."""
        if self.rule == "quantile":
            tables = self._latencies(chance, runs)
        else:
            tables = self._pairs(chance, runs) if self.rule in PAIRED else self._steps(chance, runs)
        for table in tables:
            yield np.rint(table).astype(np.int64).tolist()

    def _steps(self, chance: np.random.Generator, runs: int) -> Table:
        rows = self.looks[-1]
        truths = self.truth + self.drift * np.linspace(-0.5, 0.5, rows)
        noise = 1 + self.cv * correlated(chance, (runs, rows, self.devices), self.correlation)
        if self.rule == "range":
            extra = truths / 100 * self.devices / 2
            means = np.ones((rows, self.devices))
            means[:, 0] -= extra
            means[:, -1] += extra
            return MEAN_NS * means * noise
        shares = np.full((rows, self.devices), 0.93)
        shares[:, 0] = truths / 100
        window = 1 + 0.02 * correlated(chance, (runs, rows, 1), self.correlation)  # slow steps are slow for all
        return np.concatenate([MEAN_NS * shares * noise * window, MEAN_NS * window], axis=2)

    def _latencies(self, chance: np.random.Generator, runs: int) -> Table:
        """Of the requests (devices) of every round; the limit is the quantile of all."""
        spread = 0.5
        of_rounds = self.cv * correlated(chance, (runs, self.looks[-1], 1), self.correlation)
        of_requests = spread * chance.standard_normal((runs, self.looks[-1], self.devices))
        both = float(np.hypot(self.cv, spread)) * NormalDist().inv_cdf(self.truth / 100)
        return MEAN_NS * np.exp(of_rounds + of_requests - both)

    def _pairs(self, chance: np.random.Generator, runs: int) -> Table:
        """Median step of candidate and baseline per pair of blocks, in the order A B B A."""
        pairs = self.looks[-1]
        goal = 0.7 * self.truth / 100 if self.rule == "ratio" else 1 + self.truth / 100
        ratio = goal * (1 + self.drift / 100 * np.linspace(-0.5, 0.5, pairs))
        if self.between_pairs:
            noise = 1 + self.cv * correlated(chance, (runs, pairs, 1), self.correlation)
            return MEAN_NS * np.concatenate([ratio[:, None] * noise, np.ones_like(noise)], axis=2)
        steps = 1 + self.cv * correlated(chance, (runs, 2 * pairs * BLOCK_STEPS, 1), self.correlation)
        blocks = np.median(steps.reshape(runs, pairs, 2, BLOCK_STEPS), axis=3)
        blocks[:, 1::2] = blocks[:, 1::2, ::-1]
        return MEAN_NS * blocks * np.stack([ratio, np.ones(pairs)], axis=1)


def correlated(chance: np.random.Generator, shape: tuple[int, int, int], correlation: float) -> Table:
    """Standard normal noise (runs, rows, columns), correlated from row to row."""
    noise = chance.standard_normal(shape)
    fresh = (1 - correlation**2) ** 0.5
    for row in range(1, shape[1]) if correlation else ():
        noise[:, row] = correlation * noise[:, row - 1] + fresh * noise[:, row]
    return noise


def outcomes(cell: Cell, runs: int, seed: Sequence[int]) -> Counter[str]:
    """How the runs of a cell ended: PASS and FAIL at the first look that gave one, else the last look's reason."""
    chance = np.random.default_rng(list(seed))
    found: Counter[str] = Counter()
    for sample in cell.samples(chance, runs):
        found[_ending(cell, sample)] += 1
    return found


def named_outcomes(task: tuple[str, Cell, int, Sequence[int]]) -> tuple[str, Counter[str]]:
    """`outcomes` of (name, cell, runs, seed), with the name, for a pool of processes."""
    name, cell, runs, seed = task
    return name, outcomes(cell, runs, seed)


def _ending(cell: Cell, sample: Sequence[Sequence[int]]) -> str:
    reason = ""
    for rows in cell.looks:
        decision = cell.decide(sample[:rows], ALPHA / len(cell.looks))
        if decision.outcome is not Outcome.INCONCLUSIVE:
            return str(decision.outcome)
        reason = str(decision.reason)
    return reason
