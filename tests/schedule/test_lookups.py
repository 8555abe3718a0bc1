"""Lookups of a sharded embedding stand early enough, in one order, and never make ranks wait in a circle."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.schedule.actions import Action, ActionList, Kind, parse_actions
from hybrid_runtime.schedule.check import check, check_compute
from hybrid_runtime.schedule.choose import lowered_lists, place
from hybrid_runtime.schedule.forward_only import forward_only
from hybrid_runtime.schedule.lookups import with_lookups
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.replay import replay, replay_step
from hybrid_runtime.schedule.step_costs import Hop, StepCosts
from tests.schedule.drawn import read_drawing
from tests.schedule.random_lists import random_durations, random_lists, random_placement

LINEAR = (0, 1, 2)
ONE_F_ONE_B = """
rank 0 | EF0 EF1 F0 EF2 F1 F2 EF3 B0 EB0 F3 B1 EB1 B2 EB2 B3 EB3
rank 1 | EF0 EF1 EF2 F0 F1 B0 EF3 F2 B1 F3 EB0 B2 B3 EB1 EB2 EB3
rank 2 | EF0 EF1 EF2 F0 B0 F1 EF3 B1 F2 B2 EB0 F3 B3 EB1 EB2 EB3"""


def ones(num_stages: int) -> dict[tuple[int, Kind], int]:
    return {(stage, kind): 2 if kind is Kind.B else 1 for stage in range(num_stages) for kind in Kind}


def compute(lists: Sequence[ActionList]) -> tuple[ActionList, ...]:
    return tuple(tuple(action for action in actions if action.kind.is_compute) for actions in lists)


def test_where_they_stand() -> None:
    lists = lowered_lists("1f1b", 3, 4, "train")
    found = with_lookups(lists, LINEAR, (0, 1, 2), ones(3))
    assert compute(found) == read_drawing(ONE_F_ONE_B)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1", "zb_v", "dualpipe_v", "v_half", "interleaved_1f1b"])
@pytest.mark.parametrize("ranks", [(0, 1, 2), (1,), (2,), ()], ids=str)
def test_every_schedule(schedule: str, ranks: tuple[int, ...]) -> None:
    """Right by the checker, one action early on stage 0's rank, and no rank waits longer for a free sum."""
    stage_to_rank = place(schedule, 3)
    lists = lowered_lists(schedule, 3, 6, "train")
    found = with_lookups(lists, stage_to_rank, ranks, ones(len(stage_to_rank)))
    assert not check(found, stage_to_rank, 6, "train").findings
    assert [tuple(a for a in actions if not a.kind.is_lookup) for actions in found] == list(lists)
    home = [action for action in compute(found)[0] if action.kind is not Kind.EB]
    for microbatch in range(6):
        start, end = home.index(Action(0, Kind.EF, microbatch)), home.index(Action(0, Kind.F, microbatch))
        between = [action for action in home[start:end] if action.kind is not Kind.EF]
        assert len(between) == (start > 0 and microbatch > 0), between
    durations = ones(len(stage_to_rank)) | {(k, kind): 0 for k in range(6) for kind in (Kind.EF, Kind.EB)}
    assert replay(found, stage_to_rank, durations).makespan == replay(lists, stage_to_rank, durations).makespan


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_lists_and_durations(seed: int) -> None:
    """Zero durations and rendezvous sends included, which a replay alone does not cover."""
    rng = random.Random(seed)
    placement = random_placement(rng)
    num_microbatches = rng.randint(1, 5)
    lists = random_lists(rng, placement, num_microbatches)
    lowered = lower(lists, placement)
    before = check(lowered, placement, num_microbatches, "train").findings
    ranks = [rank for rank in range(len(lists)) if rng.random() < 0.7]
    found = with_lookups(lowered, placement, ranks, random_durations(rng, len(placement)))
    after = check(found, placement, num_microbatches, "train").findings
    assert [finding.message for finding in after] == [finding.message for finding in before]
    for rank, actions in enumerate(found):
        lookups = sum(action.kind is Kind.EF for action in actions)
        assert lookups == (num_microbatches if rank in {placement[0], *ranks} else 0)


def test_forward_only() -> None:
    lists = lower(forward_only(3, 4), LINEAR)
    found = with_lookups(lists, LINEAR, (2,), ones(3))
    assert not check(found, LINEAR, 4, "forward").findings
    assert not any(action.kind is Kind.EB for actions in found for action in actions)
    assert not any(action.kind.is_lookup for action in found[1])


def test_a_late_part_delays_the_sum() -> None:
    """A hop of 3 from rank 1, and 1 for the bytes: the first forward starts 4 after its lookup, later ones in time."""
    lists = read_drawing("rank 0 | EF0 F0 B0 EB0\nrank 1 | EF0 F0 B0 EB0")
    durations = {(stage, Kind(kind)): time for stage in (0, 1) for kind, time in (("F", 5), ("B", 5), ("EF", 1))}
    costs = StepCosts(durations, hop=Hop(3, bandwidth=Fraction(2)), message_bytes={(1, Kind.EF): 2, (0, Kind.EB): 8})
    first, second = replay_step(lists, (0, 1), costs).ranks
    assert first[1].start == 1 + 3 + 1
    assert first[1].end == 10
    assert second[-1].start == first[2].end + 3 + 4


PLANTED = {
    "missing EF": ("1EF0", "", "1EF0: is missing"),
    "missing EB": ("2EB3", "", "2EB3: is missing"),
    "twice": ("1EF1", "1EF1 1EF1", "is done twice"),
    "order of EF": ("1EF0 1EF1", "1EF1 1EF0", "1EF1: stands where stage 0's rank has 0EF0"),
    "order of EB": ("2EB2 2EB3", "2EB3 2EB2", "2EB3: stands where stage 0's rank has 0EB2"),
    "EF behind its F": ("0EF2 0F1 0F2", "0F1 0F2 0EF2", "0F2: can never run"),
    "EB before its B": ("0B0 0EB0", "0EB0 0B0", "0EB0: can never run"),
    "circle": ("2EF3 2B1 2F2", "2B1 2F2 2F3 2EF3", "can never run"),
    "not its first stage": ("1EF0", "2EF0", "stage 2 lives on pipeline rank 2"),
    "no home": ("0EF3", "", "0EF3: is missing"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_checker_finds(planted: str) -> None:
    old, new, message = PLANTED[planted]
    texts = [" ".join(map(str, actions)) for actions in read_drawing(ONE_F_ONE_B)]
    if planted == "circle":
        texts[2] = texts[2].replace(" 2F3", "")
    assert any(old in text for text in texts)
    lists = [parse_actions(text.replace(old, new).split()) for text in texts]
    found = check_compute(lists, LINEAR, 4, "train").findings
    assert any(message in str(finding) for finding in found), found


def test_checker_finds_lookups_of_nobody() -> None:
    lists = [tuple(a for a in actions if a.kind is not Kind.EF) for actions in read_drawing(ONE_F_ONE_B)]
    assert "0EF0: is missing" in str(check_compute(lists, LINEAR, 4, "train").findings[0])
    backward = check_compute(read_drawing(ONE_F_ONE_B), LINEAR, 4, "forward").findings
    assert any("0EB0: a forward-only schedule has no backward" in str(finding) for finding in backward)


def test_a_rank_is_named_by_its_first_stage() -> None:
    lists = lowered_lists("zb_v", 2, 4, "train")
    found = with_lookups(lists, (0, 1, 1, 0), (0, 1), ones(4))
    wrong = [tuple(a._replace(stage=2) if a.kind.is_lookup and a.stage else a for a in row) for row in found]
    assert "by its first stage, here 1" in str(check(wrong, (0, 1, 1, 0), 4, "train").findings[0])
