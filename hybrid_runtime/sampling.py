"""How much is measured: rounds of turns until every claim is decided or the budget is gone. No torch here.

    warm-up of each side, longer until its steps are steady
    planted steps                        the self-test, doubled until it is decided, with a limit
    rounds 1 .. blocks      look 1       every look may spend its share of the error budget, fixed before any data
    as many again           look 2
    twice as many again     look 3       ... and no look is begun that the time budget cannot pay

After a look only such blocks are run as an undecided claim rests on: where speed is decided, or cannot be, the
baseline and the candidate's bare blocks are left out, and balance gets all the time.

    candidate against each other baseline, as many rounds as before the first look

A look is `judge` on the records so far, the same function that judges them in the end and years later.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.records import AGAINST, PLANTED, SPEED, TRACE, read_side
from hybrid_runtime.run_folder import RunFolder, write_whole
from hybrid_runtime.sides import Sides
from hybrid_runtime.turns import CANDIDATE, Turn, finish, give_turn, rounds
from hybrid_runtime.verdict import Look, Outcome, Sampling
from hybrid_runtime.verifier.judge import judge
from hybrid_runtime.verifier.self_test import PLANTED_LOOKS, planted_checks
from hybrid_runtime.verifier.side import load_side
from hybrid_runtime.verifier.statistics import ALPHA
from hybrid_runtime.verifier.steady import steady_from

MORE_WARMUPS = 2  # a side that is not steady after so many further warm-ups is measured all the same, and judged so
PLANTED_STEPS = 120  # before the first look; all looks together take eight times as many
WORTHWHILE = 4  # the last look needs at least a quarter more blocks than the one before


class Conductor:
    """Gives turns and counts blocks.

    Args:
        sides: the running sides; a turn of one that has dropped out is left out.
    """

    def __init__(self, deployment: Deployment, folder: RunFolder, sides: Sides) -> None:
        self._measurement = deployment.measurement
        self._ranks = deployment.mesh.world_size
        self._folder = folder
        self._sides = sides
        self._blocks: Counter[str] = Counter()
        self._started_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def warm_up(self, side: str, folder: RunFolder) -> None:
        """Until the side's step times are steady, with a limit."""
        steps = self._measurement.warmup_steps
        self._give(side, TRACE, steps, steps)
        for _ in range(MORE_WARMUPS):
            if side not in self._sides or _is_steady(folder):
                return
            self._give(side, TRACE, steps, steps)

    def plant(self) -> None:
        """The planted imbalance, with more steps until all its levels are decided."""
        for look in range(PLANTED_LOOKS if self._ranks > 1 else 0):
            steps = PLANTED_STEPS * 2 ** max(0, look - 1)
            self._give(CANDIDATE, PLANTED, steps // 10, steps + steps // 10)
            checks = planted_checks(load_side(self._folder.path, "candidate", finished=False))
            if all(check.outcome is not Outcome.INCONCLUSIVE for check in checks):
                return

    @property
    def _alpha(self) -> float:
        return ALPHA / self._measurement.looks

    def run(self, blocks: Iterable[tuple[str, str]]) -> None:
        """A block of each (side, purpose), in that order."""
        settle, judged = self._measurement.settle_steps, self._measurement.block_steps
        for side, purpose in blocks:
            self._give(side, purpose, settle, settle + judged)

    def sample(self, *, baseline: bool) -> None:
        """Rounds and looks, logged in `sampling.json`."""
        began_s, done, ran = self.elapsed_s, 0, 0
        purposes = {TRACE, SPEED}
        looks: list[Look] = []
        self._log(looks, "budget")
        for number in range(self._measurement.looks):
            round_blocks = len([*rounds(1, 1, purposes, baseline=baseline)])
            round_s = (self.elapsed_s - began_s) / ran * round_blocks if ran else 0.0
            goal = self._affordable(self._measurement.blocks * 2**number, done, round_s)
            if goal is None:
                break
            self.run(rounds(done + 1, goal, purposes, baseline=baseline))
            ran += (goal - done) * round_blocks
            done = goal
            undecided = self._undecided()
            looks.append(Look(blocks=done, elapsed_s=f"{self.elapsed_s:.1f}", undecided=tuple(undecided)))
            self._log(looks, "budget")
            if not undecided:
                break
            purposes = set(undecided.values())
        decided = bool(looks) and not looks[-1].undecided
        single = self._measurement.looks == 1
        self._log(looks, "decided" if decided else "single look" if single else "budget")

    def _affordable(self, goal: int, done: int, round_s: float) -> int | None:
        """As many rounds as the budget pays for, up to `goal`; None if that is hardly more than was done."""
        if not done:
            return goal
        left = int((self._measurement.budget_s - self.elapsed_s) / round_s)
        return min(goal, done + left) if left * WORTHWHILE >= done else None

    def _undecided(self) -> dict[str, str]:
        """Claims that more samples might decide, each with the purpose of the blocks that it rests on.

        Too few requests for a quantile are no figure yet; latencies are those of bare blocks.
        """
        claims = judge(self._folder.path, finished=False).claims
        needy = [claim for claim in claims if claim.steps_needed]
        return {claim.id: claim.measured.purpose if claim.measured else SPEED for claim in needy}

    def self_test_only(self) -> None:
        """The self-tests and nothing else."""
        self.plant()
        self.run(rounds(1, self._measurement.blocks, baseline=False))
        self._log([], "self-test only")

    def _log(self, looks: list[Look], stopped: str) -> None:
        sampling = Sampling.model_validate(
            {
                "looks_allowed": self._measurement.looks,
                "alpha_per_look": f"{self._alpha:.6g}",
                "budget_s": self._measurement.budget_s,
                "looks": looks,
                "stopped": stopped,
            }
        )
        write_whole(self._folder.sampling, sampling.model_dump_json(indent=1) + "\n")

    def compare(self, kind: str, side: str) -> None:
        """Candidate against another kind of baseline, A B B A."""
        self.warm_up(side, self._folder.other_baseline(kind))
        pair = ((CANDIDATE, AGAINST + kind), (side, SPEED))
        for number in range(self._measurement.blocks):
            self.run(pair if number % 2 == 0 else pair[::-1])
        self.dismiss(side)

    def dismiss(self, side: str) -> None:
        """Lets a side end; what it holds of the devices is free for others."""
        if side in self._sides:
            finish(self._folder.turns, side, self._blocks[side])
            self._sides.wait(side)

    def _give(self, side: str, purpose: str, unjudged: int, steps: int) -> None:
        turn = Turn(side, self._blocks[side], purpose, unjudged, steps)
        give_turn(self._folder.turns, turn, self._sides.watch, wanted=lambda: side in self._sides)
        self._blocks[side] += 1


def _is_steady(folder: RunFolder) -> bool:
    """Whether the step times of what a side has done so far have settled within their first half."""
    steps = read_side(folder.path, finished=False)[0].steps
    return steady_from([step.end_ns - step.start_ns for step in steps]) is not None
