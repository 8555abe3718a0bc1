"""How long is measured: rounds double while claims are undecided, within looks and budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybrid_runtime import sampling
from hybrid_runtime.records import PLANTED, SPEED, TRACE
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.sampling import Conductor
from hybrid_runtime.turns import Turn
from hybrid_runtime.verdict import Outcome, Sampling
from tests.verifier.synthetic import deployment


def measured_of(claim: str) -> SimpleNamespace | None:
    """Of the blocks that a claim rests on, in this file; a quantile of too few requests is no figure yet."""
    return None if claim == "p99" else SimpleNamespace(purpose=TRACE if claim.startswith("balance") else SPEED)


class World:
    """Instead of running sides: a clock that moves with every turn, and judgements from a list."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undecided: list[list[str]], **measurement: Any):
        self.turns: list[Turn] = []
        self.now_s = 0.0
        self.folder = RunFolder(tmp_path)
        self.sides = {"candidate", "baseline"}
        self.steady_after = 1
        self._undecided: Iterator[list[str]] = iter(undecided)
        settings = {"warmup_steps": 20, "block_steps": 10, "settle_steps": 1, "blocks": 4, "looks": 3}
        deployed = deployment(measurement=settings | measurement)
        sides: Any = type("Sides", (), {"__contains__": lambda _, name: name in self.sides, "watch": lambda _: None})()
        monkeypatch.setattr(sampling, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(sampling, "give_turn", self._give)
        monkeypatch.setattr(sampling, "judge", self._judge)
        monkeypatch.setattr(sampling, "_is_steady", lambda folder: len(self.turns) >= self.steady_after)
        self.conductor = Conductor(deployed, self.folder, sides)

    def _give(self, folder: Path, turn: Turn, alive: Callable[[], None], wanted: Callable[[], bool]) -> None:
        if wanted():
            self.turns.append(turn)
            self.now_s += 1

    def _judge(self, folder: Path, *, finished: bool) -> Any:
        assert not finished
        left = next(self._undecided)
        claims = [SimpleNamespace(id=name, steps_needed=100, measured=measured_of(name)) for name in left]
        return SimpleNamespace(claims=[*claims, SimpleNamespace(id="decided", steps_needed=None)])

    def rounds(self) -> int:
        return sum(turn.side == "baseline" for turn in self.turns)

    @property
    def log(self) -> Sampling:
        return Sampling.model_validate_json(self.folder.sampling.read_text())


def test_a_decided_run_stops_at_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, [[]])
    world.conductor.sample(baseline=True)
    assert (world.rounds(), world.log.stopped) == (4, "decided")
    assert [(look.blocks, look.undecided) for look in world.log.looks] == [(4, ())]
    assert [turn.block for turn in world.turns if turn.side == "candidate"] == list(range(8))
    assert {(turn.unjudged_steps, turn.steps) for turn in world.turns} == {(1, 11)}


def test_blocks_double_while_something_is_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, [["a", "b"], ["b"], ["b"]])
    world.conductor.sample(baseline=True)
    assert (world.rounds(), world.log.stopped) == (16, "budget")
    assert [(look.blocks, look.undecided) for look in world.log.looks] == [(4, ("a", "b")), (8, ("b",)), (16, ("b",))]
    assert (world.log.looks_allowed, world.log.alpha_per_look) == (3, "0.0166667")


def test_only_blocks_are_run_that_an_undecided_claim_rests_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, [["p99", "balance"], ["balance"], []])
    world.conductor.sample(baseline=True)
    assert (world.rounds(), world.log.stopped) == (8, "decided")
    assert [turn.purpose for turn in world.turns].count(TRACE) == 16
    assert [turn.purpose for turn in world.turns if turn.side == "candidate"].count(SPEED) == 8
    assert [look.blocks for look in world.log.looks] == [4, 8, 16]


def test_no_look_is_begun_that_the_budget_cannot_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round costs 3 s here, without traced blocks 2 s: 4 rounds take 12 s, and 18 s pay for 3 more."""
    world = World(tmp_path, monkeypatch, [["a"], ["a"], ["a"]], budget_s=18)
    world.conductor.sample(baseline=True)
    assert [look.blocks for look in world.log.looks] == [4, 7]
    assert world.log.stopped == "budget"
    world = World(tmp_path, monkeypatch, [["a"], ["a"]], budget_s=13)
    world.conductor.sample(baseline=True)
    assert [look.blocks for look in world.log.looks] == [4]


def test_one_look_alone_spends_the_whole_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, [["a"]], looks=1)
    world.conductor.sample(baseline=False)
    assert (world.rounds(), world.log.stopped, world.log.alpha_per_look) == (0, "single look", "0.05")


@pytest.mark.parametrize(("steady_after", "turns"), [(1, 1), (2, 2), (99, 3)])
def test_warm_up_lasts_until_steady_with_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady_after: int, turns: int
) -> None:
    world = World(tmp_path, monkeypatch, [])
    world.steady_after = steady_after
    world.conductor.warm_up("candidate", world.folder)
    assert [(turn.purpose, turn.unjudged_steps, turn.steps) for turn in world.turns] == [(TRACE, 20, 20)] * turns


@pytest.mark.parametrize(("decided_after", "turns"), [(1, [120]), (2, [120, 120]), (9, [120, 120, 240, 480])])
def test_planted_steps_are_done_until_they_are_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decided_after: int, turns: list[int]
) -> None:
    world = World(tmp_path, monkeypatch, [], looks=1)  # the claims' looks, which are another matter

    def checks(side: object) -> list[Any]:
        done = len(world.turns) >= decided_after
        return [SimpleNamespace(outcome=Outcome.PASS if done else Outcome.INCONCLUSIVE)]

    monkeypatch.setattr(sampling, "planted_checks", checks)
    monkeypatch.setattr(sampling, "load_side", lambda *_, **__: None)
    world.conductor.plant()
    assert [turn.steps - turn.unjudged_steps for turn in world.turns] == turns
    assert {turn.purpose for turn in world.turns} == {PLANTED}


def test_a_baseline_that_dropped_out_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, [[]])
    world.sides.discard("baseline")
    world.conductor.sample(baseline=True)
    assert world.rounds() == 0
    assert len(world.turns) == 8
