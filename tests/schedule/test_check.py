from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Action, ActionList, Kind, parse_actions
from hybrid_runtime.schedule.check import check
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.messages import edge_of
from hybrid_runtime.schedule.registry import SCHEDULES, find_schedule, generate
from hybrid_runtime.schedule.walk import walk
from tests.schedule.drawn import read_drawing
from tests.schedule.oracle import keeps_every_rule

GOOD = """
rank 0 | F0 SEND_F0 F1 SEND_F1 RECV_B0 B0 RECV_B1 B1
rank 1 | RECV_F0 F0 RECV_F1 F1 B0 SEND_B0 B1 SEND_B1"""


VARIANTS = [*SCHEDULES, "interleaved_1f1b/3", "interleaved_zb/4"]  # behind a slash: stages per rank


@cache
def lowered(variant: str, pp_degree: int, num_microbatches: int, workload: str = "train") -> tuple[ActionList, ...]:
    name, _, per_rank = variant.partition("/")
    compute = generate(name, pp_degree, num_microbatches, workload, int(per_rank) if per_rank else None)
    return lower(compute, place_of(variant, pp_degree))


def place_of(variant: str, pp_degree: int) -> tuple[int, ...]:
    name, _, per_rank = variant.partition("/")
    return find_schedule(name).place(pp_degree, int(per_rank) if per_rank else None)


def accepted(variant: str, pp_degree: int, numbers: Sequence[int]) -> list[int]:
    """The numbers of microbatches that the schedule accepts."""
    found = []
    for num_microbatches in numbers:
        with suppress(PlanError):
            lowered(variant, pp_degree, num_microbatches)
            found.append(num_microbatches)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_generated_schedule_passes(variant: str) -> None:
    for pp_degree in (1, 2, 3, 4, 8):
        place = place_of(variant, pp_degree)
        numbers = accepted(variant, pp_degree, (1, pp_degree, 2 * pp_degree, 2 * pp_degree + 1, 3 * pp_degree))
        assert 2 * pp_degree in numbers
        for num_microbatches in numbers:
            for workload in ("train", "forward"):
                lists = lowered(variant, pp_degree, num_microbatches, workload)
                result = check(lists, place, num_microbatches, workload)
                assert result.findings == (), (pp_degree, num_microbatches)
                if workload == "train":
                    assert keeps_every_rule(lists, place, num_microbatches)
                if "interleaved" not in variant or workload == "forward":
                    assert set(result.receive_depth.values()) <= {1, 2}


def findings(drawing: str, *, num_microbatches: int = 2, workload: str = "train") -> list[str]:
    lists = read_drawing(drawing)
    return list(map(str, check(lists, range(len(lists)), num_microbatches, workload).findings))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("B1 SEND_B1", "SEND_B1", "pipeline rank 1, position 7, 1B1: is missing, and so are I and W"),
        ("rank 0 | F0", "rank 0 | F0 F0", "pipeline rank 0, position 1, 0F0: is done twice"),
        ("B0 SEND_B0", "B0 W0 SEND_B0", "pipeline rank 1, position 9, 1B0: is done whole and also as W"),
        ("B0 SEND_B0", "I0 SEND_B0", "pipeline rank 1, position 8, 1W0: is missing, but there is its I"),
        ("B0 SEND_B0", "B0 SEND_B0 F7", "pipeline rank 1, position 6, 1F7: there is no microbatch 7, only 2"),
        ("B0 SEND_B0", "B0 SEND_B0 0F0", "pipeline rank 1, position 6, 0F0: stage 0 lives on pipeline rank 0"),
        ("B0 SEND_B0", "B0 SEND_B0 5F0", "pipeline rank 1, position 6, 5F0: there is no stage 5, only 2 stages"),
        ("B0 SEND_B0", "B0 SEND_B0 SEND_F0", "1SEND_F0: there is no stage on another rank to talk to"),
        ("F1 SEND_F1", "F1", "pipeline rank 0, position 7, 0SEND_F1: is missing: its result would never arrive"),
        ("RECV_F1", "", "pipeline rank 1, position 7, 1RECV_F1: is missing: 0SEND_F1 is sent on edge 0>1"),
        ("SEND_F0", "SEND_F0 SEND_F0", "pipeline rank 0, position 2, 0SEND_F0: is sent twice"),
        ("RECV_F0 F0 RECV_F1", "RECV_F1 F0 RECV_F0", "message 0 on edge 0>1 is 0SEND_F0: SENDs and RECVs cross"),
        ("RECV_B0 B0 RECV_B1 B1", "RECV_B0 RECV_B1 B1 B0", "gradients of stage 0 are added out of order, after"),
        ("RECV_F0 F0", "F0 RECV_F0", "it waits for 1RECV_F0, which does not stand before it"),
        ("F0 SEND_F0", "SEND_F0 F0", "pipeline rank 0, position 0, 0SEND_F0: can never run, even if sends are"),
        ("F1 B0 SEND_B0", "B0 SEND_B0 F1", ""),  # another order that is right
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, expected: str) -> None:
    assert findings(GOOD) == []
    assert old in GOOD
    found = findings(GOOD.replace(old, new, 1))
    assert any(expected in finding for finding in found) if expected else found == [], found


def test_a_forward_only_schedule_has_no_backward() -> None:
    assert findings("rank 0 | F0 F1", workload="forward") == []
    assert findings("rank 0 | F0 F1 B0", workload="forward") == [
        "pipeline rank 0, position 2, 0B0: a forward-only schedule has no backward"
    ]


def test_nothing_to_send() -> None:
    drawing = """
rank 0 | RECV_B0 F0 SEND_F0
rank 1 | RECV_F0 F0 SEND_B0"""
    assert findings(drawing, num_microbatches=1, workload="forward") == [
        "pipeline rank 1, position 2, 1SEND_B0: nothing makes what it sends"
    ]


def test_a_list_per_rank() -> None:
    (only,) = read_drawing("rank 0 | F0 B0")
    assert [finding.message for finding in check((only,), (0, 1), 1, "train").findings] == [
        "has no action list, only 1 were given"
    ]
    assert [finding.message for finding in check((only, ()), (0,), 1, "train").findings] == ["holds no stage"]


def test_every_stuck_rank_says_what_it_misses() -> None:
    lists = read_drawing("""
rank 0 | RECV_B0 F0 B0 SEND_F0
rank 1 | RECV_F0 F0 B0 SEND_B0""")
    assert [str(finding) for finding in check(lists, (0, 1), 1, "train").findings] == [
        "pipeline rank 0, position 2, 0B0: can never run, even if sends are buffered: "
        "it waits for 1SEND_B0 on pipeline rank 1",
        "pipeline rank 1, position 1, 1F0: can never run, even if sends are buffered: "
        "it waits for 0SEND_F0 on pipeline rank 0",
    ]


def test_only_rendezvous_sends_show_this_deadlock() -> None:
    lists = read_drawing("""
rank 0 | F0 SEND_F0 F1 SEND_F1 RECV_B0 B0 RECV_B1 B1
rank 1 | RECV_F0 F0 B0 SEND_B0 RECV_F1 F1 B1 SEND_B1""")
    assert walk(lists, (0, 1), rendezvous=False) == ()
    assert [(finding.rank, finding.action) for finding in check(lists, (0, 1), 2, "train").findings] == [
        (0, "0SEND_F1"),
        (1, "1SEND_B0"),
    ]


Mutation = Callable[[random.Random, list[Action], Sequence[int]], None]


def drop(source: random.Random, actions: list[Action], place: Sequence[int]) -> None:
    del actions[source.randrange(len(actions))]


def double(source: random.Random, actions: list[Action], place: Sequence[int]) -> None:
    actions.insert(source.randrange(len(actions) + 1), source.choice(actions))


def swap(source: random.Random, actions: list[Action], place: Sequence[int]) -> None:
    one, other = source.sample(range(len(actions)), 2)
    actions[one], actions[other] = actions[other], actions[one]


def swap_neighbours(source: random.Random, actions: list[Action], place: Sequence[int]) -> None:
    one = source.randrange(len(actions) - 1)
    actions[one], actions[one + 1] = actions[one + 1], actions[one]


def cross_sends(source: random.Random, actions: list[Action], place: Sequence[int]) -> None:
    sends = [index for index, action in enumerate(actions) if action.kind.is_send]
    edge = edge_of(actions[source.choice(sends)], place)
    one, other = source.sample([index for index in sends if edge_of(actions[index], place) == edge], 2)
    actions[one], actions[other] = actions[other], actions[one]


def swap_across_a_dependency(source: random.Random, actions: list[Action], place: Sequence[int]) -> None:
    """An action before the F of its own microbatch and stage."""
    late = [index for index, action in enumerate(actions) if action.kind in (Kind.B, Kind.I)]
    other = source.choice(late)
    one = actions.index(Action(actions[other].stage, Kind.F, actions[other].microbatch))
    actions[one], actions[other] = actions[other], actions[one]


def delay(source: random.Random, actions: list[Action], place: Sequence[int]) -> None:
    action = actions.pop(source.randrange(len(actions)))
    actions.insert(source.randrange(len(actions) + 1), action)


ALWAYS_WRONG: tuple[Mutation, ...] = (drop, double, cross_sends, swap_across_a_dependency)
PERHAPS_HARMLESS: tuple[Mutation, ...] = (swap, swap_neighbours, delay)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mutations_are_rejected_unless_harmless(variant: str) -> None:
    """Harmless: the mutant still keeps every rule (the oracle decides, by another method), e.g. a RECV moved within
    the room it has, or an F that nobody was waiting for yet. The checker must agree with the oracle on every mutant.
    """
    source = random.Random(variant)
    rejected = harmless = number = 0
    while rejected < 200:
        pp_degree = source.randint(2, 4)
        num_microbatches = source.choice(accepted(variant, pp_degree, (2, pp_degree, 2 * pp_degree, 2 * pp_degree + 1)))
        place, mutate = place_of(variant, pp_degree), (*ALWAYS_WRONG, *PERHAPS_HARMLESS)[number % 7]
        lists = [list(actions) for actions in lowered(variant, pp_degree, num_microbatches)]
        before = [list(actions) for actions in lists]
        mutate(source, source.choice(lists), place)
        mutant = tuple(map(tuple, lists))
        found = check(mutant, place, num_microbatches, "train").findings
        if mutate in ALWAYS_WRONG:
            assert found, (mutate, mutant)
        assert (found == ()) == keeps_every_rule(mutant, place, num_microbatches), (mutate, before, mutant, found)
        rejected += found != ()
        harmless += found == () and lists != before
        number += 1
    assert harmless > 5  # the checker is not merely strict


def test_peaks_are_reported_with_findings() -> None:
    result = check((parse_actions(["0F0", "0F1", "0B1", "0B0"]),), (0,), 2, "train")
    assert [finding.action for finding in result.findings] == ["0B0"]
    assert result.peak_in_flight == (2,)
    assert result.receive_depth == {}
